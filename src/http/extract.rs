//! The extractors of callers. A handler that takes one of them cannot forget to authenticate.

use std::future::{Ready, ready};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpRequest};
use futures_util::future::{Either, LocalBoxFuture};

use super::error::ApiError;
use super::{State, session};
use crate::auth::{self, TokenError};
use crate::domain::access::is_admin;
use crate::domain::principal::Principal;
use crate::sign_in::SecretHash;

/// Whoever stands behind a request, by bearer token or by session.
pub struct Caller(pub Arc<Principal>);

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Either<Ready<Result<Self, ApiError>>, LocalBoxFuture<'static, Result<Self, ApiError>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        // A token is judged at once; a session has to be looked up.
        if let Some(by_token) = by_token(request, None).transpose() {
            return Either::Left(ready(by_token.map(Self)));
        }
        let request = request.clone();
        Either::Right(Box::pin(async move { Ok(Self(by_session(&request).await?.0)) }))
    }
}

/// A caller, for handlers that depend on how it has authenticated.
pub struct Who {
    pub principal: Arc<Principal>,
    /// The session, if it came by the session cookie.
    pub session: Option<SecretHash>,
}

impl FromRequest for Who {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move { identify(&request, None).await })
    }
}

/// The caller by the `Authorization` header, or else by `token`, or else by the session cookie.
pub async fn identify(request: &HttpRequest, token: Option<&str>) -> Result<Who, ApiError> {
    if let Some(principal) = by_token(request, token)? {
        return Ok(Who { principal, session: None });
    }
    let (principal, session) = by_session(request).await?;
    Ok(Who { principal, session: Some(session) })
}

/// The caller by the `Authorization` header, or else by `token`; `None` without either.
fn by_token(request: &HttpRequest, token: Option<&str>) -> Result<Option<Arc<Principal>>, ApiError> {
    let header = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap_or(""));
    let token = match header {
        Some(header) => Some(auth::bearer(header).ok_or(TokenError::Invalid)?),
        None => token,
    };
    token.map(|token| State::of(request).access.authenticate(token)).transpose()
}

/// The caller by the session cookie.
async fn by_session(request: &HttpRequest) -> Result<(Arc<Principal>, SecretHash), ApiError> {
    let (principal, session) = session::of(request).await?.ok_or(TokenError::Missing)?;
    Ok((Arc::new(principal), session))
}

/// A caller with the admin scope.
pub struct Admin;

impl FromRequest for Admin {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            if is_admin(&identify(&request, None).await?.principal) {
                Ok(Self)
            } else {
                Err(ApiError::forbidden("this needs a token with the scope `admin`"))
            }
        })
    }
}
