//! Every way in which a token can be bad, and what each of them gets.

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use uuid::Uuid;

use super::server::AuthServer;
use super::sign::{Key, claims, encoded, seconds, signed_with, with};
use super::{SECRET, models, setup};
use crate::app::{Store, both_stores};

both_stores!(every_bad_token_is_refused);

struct Forger {
    key: Key,
    rsa: Key,
    stranger: Key,
    issuer: String,
}

type Case = (String, String);

impl Forger {
    fn claims(&self) -> Value {
        claims(&self.issuer, Uuid::new_v4())
    }

    /// Signed by the project's own key, with other claims than a user's.
    fn changed(&self, changes: &Value) -> String {
        self.key.token(&with(self.claims(), changes))
    }

    fn headed(&self, header: &Value) -> String {
        self.key.signed(header, &self.claims().to_string())
    }

    fn with_secret(&self, secret: &str) -> String {
        let header = json!({"alg": "HS256", "kid": self.key.id, "typ": "JWT"});
        let key = EncodingKey::from_secret(secret.as_bytes());
        signed_with(&key, Algorithm::HS256, &header, &self.claims().to_string())
    }

    fn forms(&self) -> Vec<Case> {
        let good = self.key.token(&self.claims());
        let parts: Vec<&str> = good.split('.').collect();
        let [head, body, signature] = parts[..] else { panic!("three parts") };
        let other = self.key.token(&self.claims());
        let other_body = other.split('.').nth(1).expect("three parts");
        let huge = with(self.claims(), &json!({"filler": "x".repeat(20_000)}));
        let cases = [
            ("garbage", "garbage".to_string()),
            ("only dots", "..".to_string()),
            ("three words", "a.b.c".to_string()),
            ("two parts", format!("{head}.{body}")),
            ("four parts", format!("{good}.{signature}")),
            ("five parts, as an encrypted one", format!("{good}.{body}.{signature}")),
            ("no signature", format!("{head}.{body}.")),
            ("half a signature", format!("{head}.{body}.{}", &signature[..40])),
            ("another's signature", {
                let by = self.stranger.token(&self.claims());
                format!("{head}.{body}.{}", by.rsplit('.').next().expect("three parts"))
            }),
            ("other claims under a good signature", format!("{head}.{other_body}.{signature}")),
            ("padding", format!("{head}=.{body}.{signature}")),
            ("a list for a header", format!("{}.{body}.{signature}", encoded("[]"))),
            ("claims that are no JSON", self.key.signed(&self.key.header(), "sub")),
            ("claims that are a list", self.key.signed(&self.key.header(), "[]")),
            ("two subjects", {
                let text = self.claims().to_string();
                let twice = format!("{{\"sub\":\"{}\",{}", Uuid::new_v4(), &text[1..]);
                self.key.signed(&self.key.header(), &twice)
            }),
            ("20 kB", self.key.token(&huge)),
        ];
        cases.map(|(name, token)| (name.to_string(), token)).to_vec()
    }

    fn headers(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        for name in ["none", "None", "NONE", "nOnE", ""] {
            let header = json!({"alg": name, "typ": "JWT"});
            let text = self.claims().to_string();
            let bare = format!("{}.{}.", encoded(&header.to_string()), encoded(&text));
            cases.push((format!("alg '{name}' without a signature"), bare));
            cases.push((format!("alg '{name}' with a good signature"), self.headed(&header)));
        }
        let mut add = |name: &str, token| cases.push((name.to_string(), token));
        add("no alg", self.headed(&json!({"kid": self.key.id})));
        add("HS256 with the public key's PEM", self.with_secret(&self.key.pem()));
        add("HS256 with the public key's JWK", self.with_secret(&self.key.jwk.to_string()));
        let point = self.key.jwk["x"].as_str().expect("a point");
        add("HS256 with the public key's point", self.with_secret(point));
        let modulus = self.rsa.jwk["n"].as_str().expect("a modulus");
        add("HS256 with the public key's modulus", self.with_secret(modulus));
        add("HS256 with an empty secret", self.with_secret(""));
        add(
            "HS256 with another secret",
            self.with_secret("another secret, as long as it has to be"),
        );
        for alg in ["RS256", "PS256", "ES384", "HS384", "HS512", "EdDSA", "RS512", "XX999"] {
            let header = json!({"alg": alg, "kid": self.key.id});
            add(&format!("{alg} that names a P-256 key"), self.headed(&header));
        }
        let text = self.claims().to_string();
        let header = json!({"alg": "ES256", "kid": self.rsa.id});
        add("ES256 that names an RSA key", self.key.signed(&header, &text));
        add("ES256 by a stranger in the key's name", {
            self.stranger.signed(&self.key.header(), &text)
        });
        add("an unknown key", self.stranger.token(&self.claims()));
        add("no key named, of several", self.headed(&json!({"alg": "ES256"})));
        add("a key id that is a path", self.headed(&json!({"alg": "ES256", "kid": "../../etc"})));
        add("a key id that is a number", self.headed(&json!({"alg": "ES256", "kid": 1})));
        add("an endless key id", {
            self.headed(&json!({"alg": "ES256", "kid": "k".repeat(9_000)}))
        });
        let brought = json!({"alg": "ES256", "jwk": self.stranger.jwk, "kid": "mine"});
        add("brings its own key", self.stranger.signed(&brought, &text));
        let points = json!({"alg": "ES256", "jku": "http://127.0.0.1:1/", "kid": "mine"});
        add("says where its key is", self.stranger.signed(&points, &text));
        let mut header = self.key.header();
        header["crit"] = json!(["exp"]);
        add("a critical header", self.headed(&header));
        cases
    }

    fn claimed(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |name: &str, changes: Value| {
            cases.push((name.to_string(), self.changed(&changes)));
        };
        for name in ["exp", "iss", "aud", "sub", "role"] {
            add(&format!("no {name}"), json!({ name: null }));
        }
        add("expired an hour ago", json!({"exp": seconds(-3_600)}));
        add("expired beyond the leeway", json!({"exp": seconds(-61)}));
        add("exp in words", json!({"exp": "tomorrow"}));
        add("exp below zero", json!({"exp": -1}));
        add("not yet valid", json!({"nbf": seconds(120)}));
        add("nbf in words", json!({"nbf": "now"}));
        add("another issuer", json!({"iss": "https://other.supabase.co/auth/v1"}));
        add("the issuer with a slash", json!({"iss": format!("{}/", self.issuer)}));
        add("the issuer among others", json!({"iss": [self.issuer, "x"]}));
        add("another audience", json!({"aud": "anon"}));
        add("no audience in a list", json!({"aud": []}));
        add("a number for an audience", json!({"aud": 1}));
        add("a subject that is no UUID", json!({"sub": "root"}));
        add("an empty subject", json!({"sub": ""}));
        add("nobody", json!({"sub": Uuid::nil()}));
        add("a number for a subject", json!({"sub": 1}));
        add("role anon", json!({"role": "anon"}));
        add("role service_role", json!({"role": "service_role"}));
        add("role admin", json!({"role": "admin"}));
        add("roles in a list", json!({"role": ["authenticated"]}));
        add("an anonymous user", json!({"is_anonymous": true}));
        add("an anonymous user in words", json!({"is_anonymous": "true"}));
        cases
    }

    /// <https://supabase.com/docs/guides/api/api-keys>
    fn project_keys(&self) -> Vec<Case> {
        let legacy = Key::hs256(SECRET);
        let header = json!({"alg": "HS256", "typ": "JWT"});
        let key = |role: &str| {
            let claims = json!({"iss": "supabase", "ref": "abcdefghijklmnopqrst", "role": role,
                "iat": seconds(-9), "exp": seconds(315_360_000)});
            legacy.signed(&header, &claims.to_string())
        };
        let disguised = with(self.claims(), &json!({"role": "service_role", "sub": null}));
        let cases = [
            ("the anon key", key("anon")),
            ("the service_role key", key("service_role")),
            ("a service_role key with our issuer", legacy.token(&disguised)),
            ("a publishable key", "sb_publishable_ACJWlzQHlZjBrEguHvfOxg_3BJgxAaH".to_string()),
            ("a secret key", "sb_secret_N7UND0UgjKTVK-Uodkm0Hg_xSvEMPvz".to_string()),
        ];
        cases.map(|(name, token)| (name.to_string(), token)).to_vec()
    }
}

async fn every_bad_token_is_refused(store: Store) {
    let (key, rsa) = (Key::es256("one"), Key::rs256("two"));
    let server = AuthServer::with(&[&key, &rsa]).await;
    let app = setup(store, &server)
        .env("SUPABASE_JWT_SECRET", SECRET)
        .env("TOLLGATE_AUTH_FAILURES_PER_MINUTE", "0")
        .start()
        .await;
    let stranger = Key::es256("stranger");
    let forger = Forger { key, rsa, stranger, issuer: server.issuer() };
    let good = [json!({}), json!({"exp": seconds(-10)}), json!({"nbf": seconds(10)})];
    for changes in good {
        models(&app, &forger.changed(&changes)).await.ok();
    }
    let before = app.books.accounts().await.len();
    let groups = [forger.forms(), forger.headers(), forger.claimed(), forger.project_keys()];
    let mut wrong = Vec::new();
    let cases: Vec<Case> = groups.concat();
    println!("{} bad tokens on {store:?}", cases.len());
    for (name, token) in cases {
        let got = models(&app, &token).await;
        let code = got.json()["error"]["code"].as_str().unwrap_or_default().to_string();
        println!("{:<44} {} {code}", name, got.status);
        let expected = if name.starts_with("expired") { "token_expired" } else { "invalid_" };
        let leaks = token.len() > 8 && got.text().contains(&token);
        if got.status != 401 || !code.starts_with(expected) || leaks {
            wrong.push(format!("{name}: {} {}", got.status, got.text()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(app.books.accounts().await.len(), before, "no account for any of them");
    assert!(server.fetches() < 5, "unknown keys make one fetch in a while, not one each");
    app.assert_untouched().await;
    app.finish().await;
}

#[tokio::test]
async fn without_a_secret_no_secret_is_right() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(Store::Sqlite, &server).start().await;
    let user = claims(&server.issuer(), Uuid::new_v4());
    for secret in [SECRET, "", key.pem().as_str()] {
        assert_eq!(models(&app, &Key::hs256(secret).token(&user)).await.status, 401, "{secret}");
    }
    // With one key in the set it need not be named.
    models(&app, &key.signed(&json!({"alg": "ES256"}), &user.to_string())).await.ok();
    app.finish().await;
}

#[tokio::test]
async fn a_secret_that_is_published_proves_nothing() {
    let (key, secret) = (Key::es256("one"), Key::hs256(SECRET));
    let server = AuthServer::with(&[&key, &secret]).await;
    let app = setup(Store::Sqlite, &server).start().await;
    let user = claims(&server.issuer(), Uuid::new_v4());
    assert_eq!(models(&app, &secret.token(&user)).await.status, 401);
    models(&app, &key.token(&user)).await.ok();
    app.finish().await;
}

#[tokio::test]
async fn anonymous_users_come_in_where_they_may() {
    let key = Key::es256("one");
    let server = AuthServer::with(&[&key]).await;
    let app = setup(Store::Sqlite, &server).env("TOLLGATE_ANONYMOUS_USERS", "on").start().await;
    let user = with(claims(&server.issuer(), Uuid::new_v4()), &json!({"is_anonymous": true}));
    models(&app, &key.token(&user)).await.ok();
    app.finish().await;
}

#[tokio::test]
async fn without_supabase_a_token_is_a_wrong_key() {
    let app = crate::app::TestApp::start(Store::Sqlite).await;
    let token = Key::es256("one").token(&claims("https://x.example/auth/v1", Uuid::new_v4()));
    super::assert_refused(&models(&app, &token).await, 401, "invalid_api_key");
    app.finish().await;
}
