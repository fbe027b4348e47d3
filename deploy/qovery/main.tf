locals {
  port = 8080

  # Between readiness going off and the listener closing: a little more than the readiness probe's
  # period, so that no request is sent to a port that is closed.
  leave_seconds = 15

  # After the drain, at most: last bytes to clients, the ledger written out, calls of sinks ended.
  ledger_seconds = 45

  settings = merge({
    PORT                            = tostring(local.port)
    TOLLGATE_LOG_FORMAT             = "json"
    TOLLGATE_SHUTDOWN_DELAY_SECONDS = tostring(local.leave_seconds)
    TOLLGATE_DRAIN_SECONDS          = tostring(var.drain_seconds)

    # The ingress, which is within the cluster's network.
    TOLLGATE_TRUSTED_PROXIES = "10.0.0.0/8"
  }, var.settings)

  secrets = merge({ DATABASE_URL = var.database_url }, var.secrets)
}

resource "qovery_project" "tollgate" {
  organization_id = var.organization_id
  name            = "tollgate"
}

resource "qovery_environment" "production" {
  project_id = qovery_project.tollgate.id
  cluster_id = var.cluster_id
  name       = "production"
  mode       = "PRODUCTION"
}

resource "qovery_application" "tollgate" {
  environment_id = qovery_environment.production.id
  name           = "tollgate"

  git_repository = {
    url          = var.repository_url
    branch       = var.branch
    root_path    = "/"
    git_token_id = var.git_token_id
  }

  build_mode      = "DOCKER"
  dockerfile_path = "Dockerfile"
  auto_deploy     = true

  # A preview would share the database and spend real money.
  auto_preview = false

  cpu                   = 500
  memory                = 512
  min_running_instances = var.instances
  max_running_instances = var.instances

  ports = [
    {
      internal_port       = local.port
      external_port       = 443
      protocol            = "HTTP"
      publicly_accessible = true
      is_default          = true
    }
  ]

  healthchecks = {
    # A restart mends neither the database nor an upstream, so liveness looks at neither.
    liveness_probe = {
      type = {
        http = {
          port   = local.port
          scheme = "HTTP"
          path   = "/healthz"
        }
      }
      initial_delay_seconds = 10
      period_seconds        = 10
      timeout_seconds       = 3
      success_threshold     = 1
      failure_threshold     = 3
    }

    readiness_probe = {
      type = {
        http = {
          port   = local.port
          scheme = "HTTP"
          path   = "/readyz"
        }
      }
      initial_delay_seconds = 2
      period_seconds        = 5
      timeout_seconds       = 3
      success_threshold     = 1
      failure_threshold     = 2
    }
  }

  environment_variables = [for key, value in local.settings : { key = key, value = value }]
  secrets               = [for key, value in local.secrets : { key = key, value = value }]

  custom_domains = var.domain == null ? [] : [
    {
      domain               = var.domain
      generate_certificate = true
    }
  ]

  advanced_settings_json = jsonencode({
    # Events pass as they come, and a model may think for minutes before its first. Tollgate sends
    # a comment every 15 seconds until then.
    "network.ingress.proxy_buffering"            = "off"
    "network.ingress.proxy_request_buffering"    = "off"
    "network.ingress.proxy_read_timeout_seconds" = 3600
    "network.ingress.proxy_send_timeout_seconds" = 3600
    "network.ingress.send_timeout_seconds"       = 3600

    # Where the cluster has the newer gateway: no limit on a whole stream short of Tollgate's own,
    # and never a request sent twice by a proxy, which would be billed twice.
    "network.gateway_api.http_request_timeout_seconds"         = 3600
    "network.gateway_api.http_connection_idle_timeout_seconds" = 3600
    "network.gateway_api.http_max_stream_duration_seconds"     = 3600
    "network.gateway_api.retry.num_retries"                    = 0

    # Tollgate keeps its own order of leaving, right whether SIGTERM comes with the hook or after
    # it. The grace is the sum of its steps.
    "deployment.lifecycle.pre_stop_exec_command"  = ["/bin/true"]
    "deployment.termination_grace_period_seconds" = local.leave_seconds + var.drain_seconds + local.ledger_seconds

    "security.read_only_root_filesystem" = true
  })
}

# Nothing runs without it. Another `version` deploys again: it is a hash of all that can be set, of
# which no secret can be read.
resource "qovery_deployment" "production" {
  environment_id = qovery_environment.production.id
  desired_state  = "RUNNING"
  version = nonsensitive(sha256(jsonencode([
    local.settings, local.secrets, var.repository_url, var.branch, var.domain, var.instances,
    var.drain_seconds,
  ])))

  depends_on = [qovery_application.tollgate]
}
