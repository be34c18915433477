//! Client for [Muster](https://github.com/muster-realtime/muster) and every other
//! SocketCluster server (protocol versions 1 and 2).
//!
//! ```no_run
//! use futures_util::StreamExt;
//! use muster_client::Client;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Move {
//!     x: i32,
//!     y: i32,
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder("ws://127.0.0.1:8000/socketcluster/").connect().await?;
//! let mut moves = client.subscribe("lobby:7").await?;
//!
//! client.publish("lobby:7", &Move { x: 3, y: 4 }).await?;
//!
//! while let Some(publication) = moves.next().await {
//!     let Move { x, y } = publication?.data.json()?;
//!     println!("moved to {x}, {y}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # Connections come and go, a client stays
//!
//! A [`Client`] is a handle to one task that holds the connection. When the
//! connection ends, the task opens another after a short wait with jitter,
//! authenticates with the token it has and subscribes again to everything that
//! is wanted; [`Client::events`] tells. Publications that were made in between
//! are missed. Only a close that means "stay away" (1000, and 4500 and above)
//! ends the client for good.
//!
//! # Calls
//!
//! [`Client::call`], [`Client::publish`] and [`Client::authenticate`] wait for
//! the server's answer. Without a connection they wait for the next one, for as
//! long as the ack timeout lets them. If the connection ends after they were
//! sent, they fail with [`Error::ConnectionLost`], and only the application can
//! know whether to repeat them. [`Client::transmit`] and
//! [`Client::transmit_publish`] have no answer, and fail at once without a
//! connection.
//!
//! # Queues and what happens when they are full
//!
//! | queue | limit | when full |
//! |---|---|---|
//! | commands to the task | 256 | the method waits |
//! | packets to be written | 1 MiB | commands are not taken |
//! | calls without an answer | [`ClientBuilder::calls_max`] | [`Error::TooManyCalls`] |
//! | publications of a [`Subscription`] | [`ClientBuilder::subscription_capacity`] | the newest are dropped; the stream says how many with [`SubscriptionError::Lagged`] |
//! | events of an [`Events`] stream | 256 | the newest are dropped; the stream says how many with [`Event::Lagged`] |
//!
//! # TLS
//!
//! Only `ws://` is supported so far; in front of browsers TLS ends at a load
//! balancer.

#![warn(missing_docs)]

mod builder;
mod client;
mod command;
mod connection;
mod driver;
mod error;
mod event;
mod feed;
mod payload;
mod subscription;

pub use builder::ClientBuilder;
pub use client::Client;
pub use error::Error;
pub use event::{Event, Events};
pub use muster_wire::{
    ChannelName, ChannelNameError,
    client::{ReconnectConfig, ServerError, SubscribeOptions},
    close::CloseCode,
};
pub use payload::Payload;
pub use subscription::{Publication, Subscription, SubscriptionError};
