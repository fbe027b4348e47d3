variable "organization_id" {
  type        = string
  description = "The organization at Qovery."
}

variable "cluster_id" {
  type        = string
  description = "The cluster that it runs on. Another one later means another environment."
}

variable "repository_url" {
  type        = string
  description = "The git repository with the Dockerfile, as https://github.com/you/tollgate.git."
}

variable "branch" {
  type    = string
  default = "main"
}

variable "git_token_id" {
  type        = string
  default     = null
  description = "For a private repository: the id of a git token at Qovery."
}

variable "database_url" {
  type        = string
  sensitive   = true
  description = "postgres://…, a direct connection or a session-mode pooler. At Supabase port 5432."
}

variable "secrets" {
  type        = map(string)
  default     = {}
  sensitive   = true
  description = "More secrets by name: OPENROUTER_API_KEY, STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET …"
}

variable "settings" {
  type        = map(string)
  default     = {}
  description = "More variables by name, as in .env.example: SUPABASE_URL, TOLLGATE_MARKUP …"
}

variable "domain" {
  type        = string
  default     = null
  description = "A domain of your own. Without one, Qovery gives one."
}

variable "instances" {
  type        = number
  default     = 2
  description = "How many run. Two, so that one serves while the other is replaced."
}

variable "drain_seconds" {
  type        = number
  default     = 120
  description = "How long streams may run on when an instance leaves. Those that are longer end with an error event."
}
