//! What a handle asks the task for.

use std::convert::Infallible;

use muster_wire::{ChannelName, client::SubscribeOptions};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use crate::{Error, Event, Payload, Publication, SubscriptionError, feed::Feeder};

/// Where a call's answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Everything that a handle can ask for.
#[derive(Debug)]
pub(crate) enum Command {
    Call {
        event: String,
        data: Option<Box<RawValue>>,
        reply: Reply<Payload>,
    },
    Publish {
        channel: ChannelName,
        data: Box<RawValue>,
        reply: Reply<Payload>,
    },
    Authenticate {
        token: String,
        reply: Reply<Payload>,
    },
    Deauthenticate,
    Transmit {
        event: String,
        data: Option<Box<RawValue>>,
        reply: Reply<()>,
    },
    TransmitPublish {
        channel: ChannelName,
        data: Box<RawValue>,
        reply: Reply<()>,
    },
    Subscribe {
        channel: ChannelName,
        options: SubscribeOptions,
        subscriber: Subscriber,
    },
    Events {
        feeder: Feeder<Event, Infallible>,
    },
    Close,
}

/// One [`crate::Subscription`], seen from the task.
#[derive(Debug)]
pub(crate) struct Subscriber {
    pub(crate) id: u64,
    pub(crate) feeder: Feeder<Result<Publication, SubscriptionError>, SubscriptionError>,
    /// Taken once the server has answered.
    pub(crate) acknowledgement: Option<Reply<()>>,
}
