//! Polls that are answered with 304 before any route: the reader is at the end of a channel and sends the
//! tag of that end. Most polls are like that, and nothing about them has to wait. Every other request goes
//! on to the routes, and nothing was counted or changed on the way.

use std::sync::Arc;

use actix_http::Request;
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, web};

use super::{PATH, Query, etag_at_end, judge_poll};
use crate::auth;
use crate::domain::channel::ChannelName;
use crate::domain::cursor::Cursor;
use crate::http::access::Access;
use crate::http::rate_headers::add_rate;
use crate::http::{HttpState, PageQuery, etag, origin};
use crate::resources;
use crate::telemetry::metrics::Counter;

/// Answers such polls.
#[derive(Clone)]
pub struct NotModifiedFastPath {
    pub state: Arc<HttpState>,
    /// Counts such polls.
    pub not_modified: Counter,
}

impl NotModifiedFastPath {
    /// 304, if `request` is a poll with a cached token, from the end of a channel, with the tag of that end,
    /// which its caller may read by the claims alone and within its rate. Anything expensive (a signature,
    /// a cursor of many channels) is left to the route, behind its rate limit.
    pub fn answer(&self, request: &Request) -> Option<HttpResponse> {
        let headers = &request.head().headers;
        let is_poll = *request.method() == Method::GET && request.uri().path() == PATH;
        // Pages of other origins are answered by `origin::guard`.
        if !is_poll || headers.contains_key(header::ORIGIN) {
            return None;
        }
        let HttpState { access, store, polls, .. } = &*self.state;
        // They are known if this process is the only writer.
        store.heads()?;
        let known = text(headers.get(header::IF_NONE_MATCH)?)?;
        let token = auth::bearer(text(headers.get(header::AUTHORIZATION)?)?)?;
        let principal = access.authenticate_from_cache(token)?;
        let Query { channel, channels: None, cursor, limit } =
            web::Query::<Query>::from_query(request.uri().query()?).ok()?.into_inner()
        else {
            return None;
        };
        let channel = ChannelName::parse(&channel?).ok()?;
        cursor.as_deref().filter(|cursor| Cursor::is_of_one_channel(cursor))?;

        let resource = resources::lookup_local(&channel).ok()?;
        let query = PageQuery { cursor, limit };
        let judged = judge_poll(access, &principal, &channel, &resource, &query).ok()?;
        // Only now: how long an answer takes must not tell an unauthorised caller anything about a channel.
        let tag = etag_at_end(&self.state, &channel, &judged.from?, judged.limit, known)?;
        let decision = polls.rate.check_here(&Access::user_key(&principal)?)?;

        self.not_modified.inc();
        let mut answer = etag::not_modified(&tag);
        add_rate(answer.headers_mut(), &decision);
        origin::add_security_headers(answer.headers_mut());
        Some(answer)
    }
}

/// The text of a header. It is only compared with ASCII texts, so it is not validated byte by byte.
fn text(value: &HeaderValue) -> Option<&str> {
    str::from_utf8(value.as_bytes()).ok()
}
