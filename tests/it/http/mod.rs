//! The HTTP surface, from outside: every route with good input and with bad.

mod cursor;
mod deliveries;
mod health;
mod logs;
mod page;
mod poll;
mod repos;
mod server_api;
mod server_reads;
mod sign_in;
mod stream;
mod stream_life;
mod webhooks;
