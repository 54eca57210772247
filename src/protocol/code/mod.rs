//! Every code of the client protocol in one table, and what a client does on reading it: here and
//! nowhere else is decided whether it comes back or gives up (protocol §6). Owns also which code
//! a refusal of the rule, of a token or of a name becomes. Sends nothing and closes nothing.
//! Must hold: the class in the table is the one that clients derive from the number.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::auth::TokenError;
use crate::auth::revocations::Revoked;
use crate::domain::access::Denied;
use crate::domain::channel::BadChannel;

/// The longest reason in bytes: what a Close frame has room for (protocol §6.3).
pub const MAX_REASON: usize = 123;

/// What a client does by itself when it receives a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClientAction {
    /// Gives up: the call, the subscription or the connection is over until the application acts.
    Terminal,
    /// Sends the same command again after a pause.
    Retry,
    /// Asks its application for a new token, then sends the command again.
    Renew,
    /// Subscribes again after a pause, and recovers from its position.
    Resubscribe,
    /// Connects again after a pause, and recovers from its positions.
    Reconnect,
}

impl ClientAction {
    /// What clients do on a disconnect code, by its number alone (protocol §6.3).
    pub const fn of_disconnect(code: u32) -> Self {
        match code {
            3500..=3999 | 4500..=4999 => Self::Terminal,
            _ => Self::Reconnect,
        }
    }

    /// What clients do on an unsubscribe code, by its number alone (protocol §6.2).
    pub const fn of_unsubscribe(code: u32) -> Self {
        if code < 2500 { Self::Terminal } else { Self::Resubscribe }
    }
}

/// An enum of codes whose number, words and class stand in one line each.
macro_rules! codes {
    (
        $(#[$meta:meta])*
        $name:ident, $words:ident;
        $($(#[$doc:meta])* $code:ident = $number:literal, $text:literal, $class:ident;)*
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $code = $number,)*
        }

        impl $name {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                self as u16
            }

            /// The words that go with the number.
            pub const fn $words(self) -> &'static str {
                match self {
                    $(Self::$code => $text,)*
                }
            }

            /// What a client does on reading it.
            pub const fn client_action(self) -> ClientAction {
                match self {
                    $(Self::$code => ClientAction::$class,)*
                }
            }
        }
    };
}

codes! {
    /// Why a command failed while the connection stays up (protocol §6.1).
    ErrorCode, message;
    /// Something of ours broke.
    Internal = 100, "internal server error", Retry;
    /// Nobody said who this is, and somebody must.
    Unauthorized = 101, "unauthorized", Terminal;
    /// The namespace is not declared.
    UnknownChannel = 102, "unknown channel", Terminal;
    /// Not for this client.
    PermissionDenied = 103, "permission denied", Terminal;
    /// No such remote procedure.
    MethodNotFound = 104, "method not found", Terminal;
    /// The connection has this subscription.
    AlreadySubscribed = 105, "already subscribed", Terminal;
    /// One subscription more than a connection may have.
    LimitExceeded = 106, "limit exceeded", Terminal;
    /// Understood, but with a value that cannot be.
    BadRequest = 107, "bad request", Terminal;
    /// The channel or the server has no such feature.
    NotAvailable = 108, "not available", Terminal;
    /// The token's time is over, or has not come.
    TokenExpired = 109, "token expired", Renew;
    /// What should be prolonged is over.
    Expired = 110, "expired", Terminal;
    /// Faster than allowed.
    TooManyRequests = 111, "too many requests", Retry;
    /// What follows the given position is gone. Clients with state of their own start afresh.
    UnrecoverablePosition = 112, "unrecoverable position", Terminal;
    /// Another page of the same state is being read.
    ConcurrentPagination = 113, "concurrent pagination", Retry;
}

codes! {
    /// Why the server ended a subscription (protocol §6.2).
    UnsubscribeCode, reason;
    /// The server, or who runs it, wants it so.
    Server = 2000, "server unsubscribe", Terminal;
    /// Events are missing between the client's position and the live ones.
    InsufficientState = 2500, "insufficient state", Resubscribe;
    /// The subscription's token was not renewed in time.
    Expired = 2501, "subscription expired", Resubscribe;
    /// Token and position are worth nothing any more; the client drops both.
    StateInvalidated = 2502, "state invalidated", Resubscribe;
}

codes! {
    /// Why the server ends a connection (protocol §6.3).
    DisconnectCode, reason;
    /// The client closed it. Never sent; logs and metrics use it.
    Closed = 3000, "connection closed", Reconnect;
    /// This node goes away.
    Shutdown = 3001, "shutdown", Reconnect;
    /// Something of ours broke.
    Internal = 3004, "internal server error", Reconnect;
    /// The connection's token was not renewed in time.
    Expired = 3005, "connection expired", Reconnect;
    /// The token of a server-side subscription was not renewed in time.
    SubscriptionExpired = 3006, "subscription expired", Reconnect;
    /// The client reads slower than its channels fill.
    Slow = 3008, "slow", Reconnect;
    /// The socket takes no more bytes.
    WriteError = 3009, "write error", Reconnect;
    /// Events are missing on a server-side subscription.
    InsufficientState = 3010, "insufficient state", Reconnect;
    /// Who runs the server wants the client elsewhere.
    ForceReconnect = 3011, "force reconnect", Reconnect;
    /// A ping stayed without answer.
    NoPong = 3012, "no pong", Reconnect;
    /// Faster than allowed.
    TooManyRequests = 3013, "too many requests", Reconnect;
    /// Tokens and positions are worth nothing any more; the client drops them.
    StateInvalidated = 3014, "state invalidated", Reconnect;
    /// A forged token, or one for somebody or something else.
    InvalidToken = 3500, "invalid token", Terminal;
    /// Not the protocol.
    BadRequest = 3501, "bad request", Terminal;
    /// Connected, but never said so.
    Stale = 3502, "stale", Terminal;
    /// The server, or who runs it, wants it so.
    ForceDisconnect = 3503, "force disconnect", Terminal;
    /// One connection more than the user may have.
    ConnectionLimit = 3504, "connection limit", Terminal;
    /// One server-side subscription more than a connection may have.
    ChannelLimit = 3505, "channel limit", Terminal;
    /// A flavour of the protocol that this server or channel does not speak.
    InappropriateProtocol = 3506, "inappropriate protocol", Terminal;
    /// This user may not connect.
    PermissionDenied = 3507, "permission denied", Terminal;
    /// The server has no such feature.
    NotAvailable = 3508, "not available", Terminal;
    /// Too many commands failed.
    TooManyErrors = 3509, "too many errors", Terminal;
}

impl ErrorCode {
    /// Whether the reply says `temporary:true` (protocol §2.2).
    pub const fn is_temporary(self) -> bool {
        matches!(self.client_action(), ClientAction::Retry)
    }

    /// How a unidirectional transport, which has no replies, says this (protocol §3.6).
    pub const fn for_uni(self) -> DisconnectCode {
        match self {
            Self::TokenExpired | Self::Expired => DisconnectCode::Expired,
            Self::TooManyRequests => DisconnectCode::TooManyRequests,
            Self::PermissionDenied => DisconnectCode::PermissionDenied,
            _ => DisconnectCode::Internal,
        }
    }
}

/// A disconnect as it is sent: one of ours, or one that the server API asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disconnect {
    code: u16,
    reason: Cow<'static, str>,
}

impl Disconnect {
    /// A code and a reason of somebody else's choice. `None` for a number that no Close frame
    /// may carry or that clients keep for their own ends; a long reason is cut.
    pub fn custom(code: u32, reason: &str) -> Option<Self> {
        let code = u16::try_from(code).ok().filter(|code| (3000..5000).contains(code))?;
        let reason = &reason[..reason.floor_char_boundary(MAX_REASON)];
        Some(Self { code, reason: reason.to_owned().into() })
    }

    /// The number, for a Close frame or a push.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// Why, in at most [`MAX_REASON`] bytes.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What a client does on reading it.
    pub fn client_action(&self) -> ClientAction {
        ClientAction::of_disconnect(self.code.into())
    }
}

impl From<DisconnectCode> for Disconnect {
    fn from(code: DisconnectCode) -> Self {
        Self { code: code.code(), reason: Cow::Borrowed(code.reason()) }
    }
}

/// How a command is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, derive_more::From)]
pub enum Refusal {
    /// An error reply; the connection stays up.
    Error(ErrorCode),
    /// The connection ends.
    Disconnect(DisconnectCode),
}

/// The command that brought a token, for the same flaw costs more or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenUse {
    /// `connect` (design §8, protocol §10.1).
    Connect,
    /// `subscribe`, where a channel asks for a token (protocol §4.2, §10.2).
    Subscribe,
    /// `refresh` (protocol §4.8).
    Refresh,
    /// `sub_refresh` (protocol §4.9).
    SubRefresh,
}

impl Refusal {
    /// A subscription token that is ours, but for another user, channel or client (protocol
    /// §10.2), or a connection token of another user in `refresh` (protocol §4.8).
    pub const FOREIGN_TOKEN: Self = Self::Disconnect(DisconnectCode::InvalidToken);

    /// What a worthless token costs. A token whose time has not come counts as expired: in both
    /// cases a new one helps. One whose key is being fetched may be sent again.
    pub const fn of_token(used: TokenUse, error: TokenError) -> Self {
        use TokenError::{Claim, Expired, Invalid, KeyPending, Missing, NotYetValid};
        match (used, error) {
            (_, KeyPending) => Self::Error(ErrorCode::Internal),
            (TokenUse::Connect | TokenUse::Refresh, Missing) => Self::Disconnect(DisconnectCode::BadRequest),
            (TokenUse::Subscribe, Missing | Invalid | Claim(_)) => Self::Error(ErrorCode::PermissionDenied),
            (TokenUse::SubRefresh, Missing) => Self::Error(ErrorCode::BadRequest),
            (_, Invalid | Claim(_)) => Self::Disconnect(DisconnectCode::InvalidToken),
            (TokenUse::Connect | TokenUse::Subscribe, Expired | NotYetValid) => {
                Self::Error(ErrorCode::TokenExpired)
            }
            (TokenUse::Refresh, Expired | NotYetValid) => Self::Disconnect(DisconnectCode::Expired),
            (TokenUse::SubRefresh, Expired | NotYetValid) => Self::Error(ErrorCode::Expired),
        }
    }

    /// How a unidirectional transport says this (protocol §3.6).
    pub const fn for_uni(self) -> DisconnectCode {
        match self {
            Self::Error(code) => code.for_uni(),
            Self::Disconnect(code) => code,
        }
    }
}

impl From<Revoked> for Refusal {
    fn from(revoked: Revoked) -> Self {
        Self::Disconnect(match revoked {
            Revoked::Token => DisconnectCode::InvalidToken,
            Revoked::User => DisconnectCode::PermissionDenied,
        })
    }
}

impl From<Denied> for ErrorCode {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::UnknownChannel => Self::UnknownChannel,
            Denied::Forbidden => Self::PermissionDenied,
            Denied::NotAvailable => Self::NotAvailable,
            Denied::BadName => Self::BadRequest,
        }
    }
}

impl From<BadChannel> for Refusal {
    /// A command about no channel at all is not the protocol (protocol §2.3); every other bad
    /// name is a value that cannot be.
    fn from(bad: BadChannel) -> Self {
        match bad {
            BadChannel::Empty => Self::Disconnect(DisconnectCode::BadRequest),
            BadChannel::TooLong | BadChannel::NotPrintable | BadChannel::Malformed => {
                Self::Error(ErrorCode::BadRequest)
            }
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self::Error(denied.into())
    }
}
