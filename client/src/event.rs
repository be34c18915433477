//! What happens to a client.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use muster_wire::{ChannelName, client::ServerError, close::CloseCode};

use crate::{
    Payload,
    feed::{Feed, Next},
};

/// What happens to a client.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The server answered the handshake.
    Connected {
        /// The session's id at the server, another one for each connection.
        id: String,
        /// Whether the token was accepted.
        is_authenticated: bool,
    },
    /// The connection ended or could not be opened; the client will try again.
    Disconnected {
        /// Why; 1006 if the server said nothing.
        code: CloseCode,
        /// Why, in words; often empty.
        reason: String,
        /// How long until the next attempt.
        retry_after: Duration,
    },
    /// The client has ended for good; the last event.
    Ended {
        /// Why.
        code: CloseCode,
        /// Why, in words; often empty.
        reason: String,
    },
    /// The server refused the handshake; [`Event::Disconnected`] or
    /// [`Event::Ended`] follows.
    HandshakeRefused(ServerError),
    /// A token is in use now: it was accepted, or the server issued it.
    Authenticated {
        /// The token.
        token: String,
    },
    /// The connection is not authenticated any more.
    Deauthenticated,
    /// The token of the handshake was rejected; the connection is open
    /// nevertheless.
    AuthenticationFailed(ServerError),
    /// The server ended a subscription; so does its stream.
    KickedOut {
        /// From what.
        channel: ChannelName,
        /// The server's word on it.
        message: Option<String>,
    },
    /// A one-way packet from the server's application.
    Received {
        /// Its name.
        event: String,
        /// What it carries.
        data: Payload,
    },
    /// This stream was consumed too slowly, and events were dropped here.
    Lagged {
        /// How many.
        missed: u64,
    },
}

/// A stream of [`Event`]s; ends with the client.
#[derive(Debug)]
pub struct Events {
    pub(crate) feed: Feed<Event, Infallible>,
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        Poll::Ready(match ready!(self.feed.poll_next(cx)) {
            Some(Next::Item(event)) => Some(event),
            Some(Next::Missed(missed)) => Some(Event::Lagged { missed }),
            Some(Next::End(never)) => match never {},
            None => None,
        })
    }
}
