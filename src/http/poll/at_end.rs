//! A poll of who is at the end of a channel and knows it: most polls are so, and nothing about them
//! has to wait. They are answered before the routes; whatever else is asked goes on to them, and
//! nothing was counted or changed on the way.

use actix_http::Request;
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, web};

use super::{DEFAULT_LIMIT, MAX_LIMIT, PATH, PollDoor, Query, not_modified, tag_at_end};
use crate::auth;
use crate::domain::access::Action;
use crate::domain::channel::ChannelName;
use crate::domain::position::Position;
use crate::http::access::Access;
use crate::http::limit::add_rate;
use crate::http::{origin, parse_limit};
use crate::store::{Store, items};
use crate::telemetry::Counter;

/// What such a poll needs.
#[derive(Clone)]
pub struct AtEnd {
    /// Who may what.
    pub access: web::Data<Access>,
    /// The rate of polls.
    pub door: web::Data<PollDoor>,
    /// Knows the ends, if this process alone writes to it.
    pub store: Store,
    /// Counts such polls.
    pub not_modified: Counter,
}

impl AtEnd {
    /// 304, if `request` is a poll by a token that was shown before, from the end of a channel, with the
    /// tag of that end, to which its caller is admitted by the claims alone and within its rate. What
    /// is dear (a signature, a cursor of many channels) is looked at by the route alone, behind its rate.
    pub fn answer(&self, request: &Request) -> Option<HttpResponse> {
        let headers = &request.head().headers;
        let is_poll = *request.method() == Method::GET && request.uri().path() == PATH;
        // What pages of other sites are told is the guard's to say.
        if !is_poll || headers.contains_key(header::ORIGIN) {
            return None;
        }
        let heads = self.store.heads()?;
        let known = text(headers.get(header::IF_NONE_MATCH)?)?;
        let token = auth::bearer(text(headers.get(header::AUTHORIZATION)?)?)?;
        let principal = self.access.known(token)?;
        let query = web::Query::<Query>::from_query(request.uri().query()?).ok()?.into_inner();
        let channel = ChannelName::parse(&query.channel?).ok()?;
        let limit = parse_limit(query.limit.as_deref(), DEFAULT_LIMIT, MAX_LIMIT).ok()?;
        let from = Position::parse(&query.cursor?)?;

        let item = items::unless_asked(&channel).ok()?;
        self.access.judge(&principal, Action::History, &channel, &item).ok()?;
        self.access.namespaces.load().retention_of(&channel)?;
        // Not before: how long an answer takes tells strangers nothing of a channel.
        let tag = tag_at_end(heads, &channel, &from, limit, known)?;
        let decision = self.door.rate.check_here(&Access::user_key(&principal)?)?;

        self.not_modified.inc();
        let mut answer = not_modified(tag);
        add_rate(answer.headers_mut(), &decision);
        origin::protect(answer.headers_mut());
        Some(answer)
    }
}

/// What is compared with texts that are plain ASCII, and so need not be looked at byte by byte.
fn text(value: &HeaderValue) -> Option<&str> {
    str::from_utf8(value.as_bytes()).ok()
}
