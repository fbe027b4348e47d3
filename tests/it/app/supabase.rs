//! A PostgreSQL as Supabase makes it, and PostgREST's way into it.
//! <https://supabase.com/docs/guides/database/postgres/roles>

use std::fmt;

use sqlx::error::DatabaseError;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::cluster::Cluster;

/// The program's own user owns its database and is no superuser, as on Supabase.
pub async fn create_owner(cluster: &Cluster) -> String {
    execute(&cluster.url(), "CREATE ROLE gate LOGIN CREATEDB").await;
    cluster.url().replace("tollgate@", "gate@")
}

/// The roles of the data API.
pub async fn create_roles(cluster: &Cluster) {
    let roles = "CREATE ROLE anon NOLOGIN NOINHERIT; CREATE ROLE authenticated NOLOGIN NOINHERIT; \
        CREATE ROLE service_role NOLOGIN NOINHERIT BYPASSRLS; \
        CREATE ROLE authenticator LOGIN NOINHERIT; \
        GRANT anon, authenticated, service_role TO authenticator";
    execute(&cluster.url(), roles).await;
}

/// From now on databases are as in projects from before 2026-05-30, the worse case: whatever the
/// owner makes in the schema public is everybody's.
pub async fn give_everything_by_default(cluster: &Cluster) {
    let template = format!("{}/template1", cluster.url().trim_end_matches("/postgres"));
    let give = "CREATE SCHEMA auth; \
        CREATE FUNCTION auth.uid() RETURNS UUID LANGUAGE sql STABLE AS \
        'SELECT (current_setting(''request.jwt.claims'', true)::JSON ->> ''sub'')::UUID'; \
        ALTER DEFAULT PRIVILEGES FOR ROLE gate IN SCHEMA public \
        GRANT ALL ON TABLES TO anon, authenticated, service_role; \
        ALTER DEFAULT PRIVILEGES FOR ROLE gate IN SCHEMA public \
        GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role";
    execute(&template, give).await;
}

/// Several statements of the superuser.
pub async fn execute(url: &str, statements: &str) {
    let mut connection = PgConnection::connect(url).await.expect("the test's own server");
    let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_string()));
    connection.execute(statements).await.expect("statements of the test");
    connection.close().await.expect("an open connection");
}

/// Who asks: a role and the claims of its token.
#[derive(Clone)]
pub struct Caller {
    pub name: &'static str,
    pub role: &'static str,
    pub claims: Option<String>,
}

impl Caller {
    pub fn user(name: &'static str, id: &str) -> Self {
        Self::claiming(name, &format!(r#"{{"sub":"{id}","role":"authenticated"}}"#))
    }

    pub fn claiming(name: &'static str, claims: &str) -> Self {
        Self { name, role: "authenticated", claims: Some(claims.to_string()) }
    }
}

/// What a statement came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Got {
    /// The first column of each row.
    Rows(Vec<String>),
    /// 42501, which PostgREST answers with 401 or 403.
    Denied,
    Failed(String),
}

impl Got {
    pub fn count(count: usize) -> Self {
        Self::Rows(vec![count.to_string()])
    }
}

impl fmt::Display for Got {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(rows) => formatter.pad(&rows.join(",")),
            Self::Denied => formatter.pad("-"),
            Self::Failed(code) => formatter.pad(code),
        }
    }
}

/// PostgREST: logs in as `authenticator` and, in each transaction, becomes the token's role.
/// <https://docs.postgrest.org/en/stable/references/auth.html>
pub struct DataApi(PgConnection);

impl DataApi {
    /// To the database of `url`.
    pub async fn connect(url: &str) -> Self {
        let url = url.replace("gate@", "authenticator@");
        Self(PgConnection::connect(&url).await.expect("the test's own server"))
    }

    /// Nothing that it does lasts.
    pub async fn ask(&mut self, caller: &Caller, statement: &str) -> Got {
        let claims = caller.claims.as_ref().map_or(String::new(), |claims| {
            let claims = claims.replace('\'', "''");
            format!("SET LOCAL \"request.jwt.claims\" = '{claims}';")
        });
        let begin = format!("BEGIN; SET LOCAL ROLE {}; {claims}", caller.role);
        self.0.execute(sqlx::raw_sql(AssertSqlSafe(begin))).await.expect("PostgREST's own part");
        let asked = sqlx::raw_sql(AssertSqlSafe(statement.to_string()));
        let got = self.0.fetch_all(asked).await;
        self.0.execute(sqlx::raw_sql("ROLLBACK")).await.expect("PostgREST's own part");
        match got {
            Ok(rows) => Got::Rows(rows.iter().map(|row| row.get(0)).collect()),
            Err(error) => {
                let code = error.as_database_error().and_then(DatabaseError::code);
                let code = code.unwrap_or_else(|| panic!("{statement}: {error}"));
                if code == "42501" { Got::Denied } else { Got::Failed(code.into_owned()) }
            }
        }
    }

    pub async fn close(self) {
        self.0.close().await.expect("an open connection");
    }
}
