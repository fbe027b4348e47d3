# Tollgate on Qovery: an application that is built from a repository's Dockerfile, on PostgreSQL
# elsewhere (Supabase, say). README.md beside this file has the steps.

terraform {
  required_version = ">= 1.5"

  required_providers {
    qovery = {
      source  = "qovery/qovery"
      version = "~> 0.86"
    }
  }
}

# The token comes from QOVERY_API_TOKEN.
provider "qovery" {}
