//! The HTTP surface, from outside: every route with good input and with bad.

mod builds;
mod clients;
mod cursor;
mod deliveries;
mod health;
mod limits;
mod logs;
mod page;
mod poll;
mod repos;
mod server_api;
mod server_batch;
mod server_clients;
mod server_reads;
mod sign_in;
mod stream;
mod stream_life;
mod webhooks;
