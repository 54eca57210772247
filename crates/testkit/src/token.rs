//! A connection token made by hand (HS256), so that the tool needs nothing from the server it
//! measures. Only for servers whose secret the caller knows.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

/// A token for `user` for an hour; it may read every repository of `org`, if there is one.
pub fn mint_for(secret: &str, user: &str, org: Option<&str>) -> String {
    let expires = SystemTime::now() + Duration::from_secs(3600);
    let expires = expires.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut claims = json!({ "sub": user, "exp": expires });
    if let Some(org) = org {
        claims["orgs"] = json!([org]);
    }
    sign(secret, &claims)
}

/// A token with any claims.
pub fn sign(secret: &str, claims: &Value) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
    let text = format!("{header}.{payload}");
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_one_that_other_tools_make() {
        // From an independent implementation, of the same header, claims and secret.
        let expected = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJhbmEifQ.RjLA7dFarqi6-pZ4u0KAQ_qDc67ZIEpwnOlG4JVgGjE";
        assert_eq!(sign("a-string-secret-at-least-256-bits-long", &json!({ "sub": "ana" })), expected);
    }
}
