//! The claims of a token (protocol §10.1 and §10.2, design §8), from JSON to values. Owns their
//! types: a claim of the wrong type makes the whole token invalid. Sees only payloads whose
//! signature was right, and never decides what a claim allows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::value::MapDeserializer;
use serde::de::{Deserializer, IgnoredAny, Visitor};
use serde::{Deserialize, de};
use serde_json::value::RawValue;

use super::revocations::can_be_named;
use super::{Keys, TokenError};
use crate::domain::access::{Capability, Overrides, Principal, Rights, Scopes, SubClaim};
use crate::domain::channel::ChannelName;
use crate::domain::event::Time;
use crate::domain::pattern::ChannelPattern;
use crate::domain::sorted_set::SortedSet;

/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The claims that we read.
const CLAIMS: [&str; 22] = [
    "sub",
    "exp",
    "nbf",
    "iat",
    "expire_at",
    "aud",
    "iss",
    "jti",
    "channel",
    "client",
    "orgs",
    "repos",
    "scope",
    "caps",
    "channels",
    "subs",
    "info",
    "b64info",
    "meta",
    "data",
    "b64data",
    "override",
];

/// What a subscription token grants: one channel to one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionToken {
    /// The user it was made for; empty for anonymous.
    pub user: String,
    pub channel: ChannelName,
    /// The connection it was made for, if any.
    pub client: Option<String>,
    pub jti: Option<Box<str>>,
    /// When the subscription ends; `None` is never.
    pub expires_at: Option<Time>,
    /// `chan_info`, data and changed options of the subscription.
    pub claim: SubClaim,
}

/// What both kinds of token may say: for whom, by whom, when.
#[derive(Deserialize)]
struct Common {
    #[serde(default, deserialize_with = "present")]
    sub: Option<String>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<Seconds>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<Seconds>,
    /// Read for its type alone.
    #[serde(default, deserialize_with = "present", rename = "iat")]
    _iat: Option<Seconds>,
    #[serde(default, deserialize_with = "present")]
    expire_at: Option<Seconds>,
    aud: Option<OneOrMany>,
    iss: Option<String>,
    jti: Option<String>,
}

#[derive(Deserialize)]
struct Connection<'a> {
    #[serde(default, deserialize_with = "present")]
    channel: Option<IgnoredAny>,
    orgs: Option<SortedSet<String>>,
    repos: Option<SortedSet<String>>,
    scope: Option<OneOrMany>,
    caps: Option<Vec<Cap>>,
    channels: Option<BTreeSet<ChannelName>>,
    #[serde(borrow)]
    subs: Option<BTreeMap<ChannelName, Sub<'a>>>,
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    b64info: Option<String>,
    #[serde(borrow)]
    meta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Subscription {
    channel: Option<ChannelName>,
    client: Option<String>,
}

#[derive(Deserialize)]
struct Cap {
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Sub<'a> {
    #[serde(borrow)]
    info: Option<&'a RawValue>,
    b64info: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    b64data: Option<String>,
    #[serde(default, rename = "override")]
    overrides: Option<Changes>,
}

#[derive(Deserialize)]
struct Changes {
    presence: Option<Change>,
    join_leave: Option<Change>,
    force_push_join_leave: Option<Change>,
    force_recovery: Option<Change>,
    force_positioning: Option<Change>,
}

#[derive(Deserialize)]
struct Change {
    value: bool,
}

/// A list, or a text: `scope` then has words in it, `aud` is one.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// The seconds between which a token is valid, with leeway.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Validity {
    not_before: Option<i64>,
    expires: Option<i64>,
}

impl Validity {
    /// Whether the token is valid at the time `now`.
    pub(super) fn check(self, now: Time) -> Result<(), TokenError> {
        let now = now.timestamp();
        if self.expires.is_some_and(|end| now >= end) {
            return Err(TokenError::Expired);
        }
        if self.not_before.is_some_and(|start| now < start) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }
}

/// The principal of a connection token, and its validity. With `now: None` times are ignored.
pub(super) fn connection(
    json: &[u8],
    keys: &Keys,
    now: Option<Time>,
) -> Result<(Principal, Validity), TokenError> {
    let common: Common = read(json)?;
    let claims: Connection<'_> = read(json)?;
    if claims.channel.is_some() {
        return Err(TokenError::Claim("channel"));
    }
    let subs = claims.subs.unwrap_or_default().into_iter();
    let subs: Box<[_]> = subs
        .map(|(channel, sub)| Ok((channel, sub.into_claim()?)))
        .collect::<Result<_, _>>()
        .map_err(|_: TokenError| TokenError::Claim("subs"))?;
    let channels = claims.channels.unwrap_or_default().into_iter();
    let channels = channels.chain(subs.iter().map(|(channel, _)| channel.clone())).collect();
    let info = json_or_base64(claims.info, claims.b64info, "b64info")?;
    let meta = one_line(claims.meta);
    if meta.as_ref().is_some_and(|meta| !meta.starts_with('{')) {
        return Err(TokenError::Claim("meta"));
    }
    let (expires_at, validity) = common.check(keys, now)?;
    let principal = Principal {
        user: common.sub.unwrap_or_default(),
        orgs: claims.orgs.unwrap_or_default(),
        repos: claims.repos.unwrap_or_default(),
        scopes: claims.scope.map(OneOrMany::into_scopes).unwrap_or_default(),
        caps: claims.caps.unwrap_or_default().into_iter().map(Cap::into_capability).collect(),
        channels,
        subs,
        expires_at,
        info,
        meta,
        jti: common.jti.map(String::into_boxed_str),
    };
    Ok((principal, validity))
}

/// The grant of a subscription token.
pub(super) fn subscription(json: &[u8], keys: &Keys, now: Time) -> Result<SubscriptionToken, TokenError> {
    let common: Common = read(json)?;
    let Subscription { channel, client } = read(json)?;
    let channel = channel.ok_or(TokenError::Claim("channel"))?;
    let claim = read::<Sub<'_>>(json)?.into_claim()?;
    let (expires_at, _) = common.check(keys, Some(now))?;
    let (user, jti) = (common.sub.unwrap_or_default(), common.jti.map(String::into_boxed_str));
    Ok(SubscriptionToken { user, channel, client, jti, expires_at, claim })
}

/// The options of a subscription in a request of the server API, in the same form as in the claim `subs`.
pub fn sub_claim(json: &[u8]) -> Result<SubClaim, TokenError> {
    read::<Sub<'_>>(json)?.into_claim()
}

impl Common {
    /// Checks audience, issuer and whether it can be revoked, then the times. Returns when the connection or
    /// subscription ends, and the validity of the token. `expire_at` overrides `exp` for the end only; 0 means
    /// never.
    fn check(&self, keys: &Keys, now: Option<Time>) -> Result<(Option<Time>, Validity), TokenError> {
        let audience = keys.audience.as_ref().is_none_or(|ours| match &self.aud {
            Some(OneOrMany::One(aud)) => aud == ours,
            Some(OneOrMany::Many(auds)) => auds.contains(ours),
            None => false,
        });
        let issuer = keys.issuer.is_none() || keys.issuer == self.iss;
        let named = |name: &Option<String>| name.as_deref().is_none_or(can_be_named);
        let checks =
            [("aud", audience), ("iss", issuer), ("sub", named(&self.sub)), ("jti", named(&self.jti))];
        if let Some((wrong, _)) = checks.into_iter().find(|(_, right)| !right) {
            return Err(TokenError::Claim(wrong));
        }
        let Some(now) = now else {
            return Ok((None, Validity::default()));
        };
        let leeway = i64::try_from(keys.leeway.as_secs()).unwrap_or(i64::MAX);
        let later = |Seconds(end): Seconds| end.saturating_add(leeway);
        let exp = self.exp.map(later);
        let end = match self.expire_at {
            Some(Seconds(0)) => None,
            Some(end) => Some(later(end)),
            None => exp,
        };
        let validity = Validity {
            not_before: self.nbf.map(|Seconds(start)| start.saturating_sub(leeway)),
            expires: [exp, end].into_iter().flatten().min(),
        };
        validity.check(now)?;
        // What lies behind the last day of the calendar is never.
        Ok((end.and_then(|end| Time::from_timestamp(end, 0)), validity))
    }
}

impl Cap {
    fn into_capability(self) -> Capability {
        let channels = self.channels.iter().map(|text| ChannelPattern::new(text)).collect();
        Capability { channels, allow: self.allow.iter().map(String::as_str).collect::<Rights>() }
    }
}

impl OneOrMany {
    fn into_scopes(self) -> Scopes {
        match self {
            Self::One(text) => text.split_ascii_whitespace().collect(),
            Self::Many(words) => words.iter().map(String::as_str).collect(),
        }
    }
}

impl Sub<'_> {
    fn into_claim(self) -> Result<SubClaim, TokenError> {
        Ok(SubClaim {
            info: json_or_base64(self.info, self.b64info, "b64info")?,
            data: json_or_base64(self.data, self.b64data, "b64data")?,
            overrides: self.overrides.map(Changes::into_overrides).unwrap_or_default(),
        })
    }
}

impl Changes {
    fn into_overrides(self) -> Overrides {
        let value = |change: Option<Change>| change.map(|change| change.value);
        Overrides {
            presence: value(self.presence),
            join_leave: value(self.join_leave),
            force_push_join_leave: value(self.force_push_join_leave),
            force_recovery: value(self.force_recovery),
            force_positioning: value(self.force_positioning),
        }
    }
}

/// A date in seconds since 1970. Fractions are cut off downwards, as the standard allows them.
#[derive(Clone, Copy)]
struct Seconds(i64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Seconds;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Seconds, E> {
                Ok(Seconds(number))
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Seconds, E> {
                Ok(Seconds(i64::try_from(number).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Seconds, E> {
                Ok(Seconds(number.floor() as i64))
            }
        }
        d.deserialize_any(Number)
    }
}

/// Reads a claim that is there, so that `null` is not the same as leaving it out. For who and
/// when: an issuer's mistake must not make a token anonymous or immortal.
pub(super) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
    T::deserialize(d).map(Some)
}

fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, TokenError> {
    serde_json::from_slice(json).map_err(|_| match wrong_claim::<T>(json) {
        Some(name) => TokenError::Claim(name),
        None => TokenError::Invalid,
    })
}

/// The first of the claims that makes `json` unreadable by itself: serde's error does not name it.
fn wrong_claim<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<&'static str> {
    let claims: BTreeMap<String, &'a RawValue> = serde_json::from_slice(json).ok()?;
    let alone = |claim: (&str, &'a RawValue)| {
        T::deserialize(MapDeserializer::<_, serde_json::Error>::new(std::iter::once(claim)))
    };
    CLAIMS.into_iter().find(|name| claims.get(*name).is_some_and(|value| alone((name, *value)).is_err()))
}

/// A JSON claim, or its twin in base64, called `name`, which wins if it is not empty.
fn json_or_base64(
    raw: Option<&RawValue>,
    twin: Option<String>,
    name: &'static str,
) -> Result<Option<Arc<str>>, TokenError> {
    let Some(twin) = twin.filter(|twin| !twin.is_empty()) else {
        return Ok(one_line(raw));
    };
    let json = BASE64.decode(twin).map_err(|_| TokenError::Claim(name))?;
    let json: &RawValue = serde_json::from_slice(&json).map_err(|_| TokenError::Claim(name))?;
    Ok(one_line(Some(json)))
}

/// A JSON value without line breaks, which it can only have between its parts. `null` is none.
fn one_line(raw: Option<&RawValue>) -> Option<Arc<str>> {
    let text = raw?.get();
    (text != "null").then(|| text.replace(['\n', '\r'], "").into())
}
