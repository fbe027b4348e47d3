output "host" {
  description = "Where it answers: https://HOST/v1 is the base URL for clients."
  value       = qovery_application.tollgate.external_host
}
