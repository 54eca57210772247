//! TLS towards other servers: each word of an address means what operators know from libpq, and
//! what cannot be believed is not spoken to.

mod postgres;
mod redis;
