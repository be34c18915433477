//! Publications of one channel, as a stream.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use futures_util::Stream;
use muster_wire::{ChannelName, client::ServerError, close::CloseCode};
use tokio::sync::{Notify, oneshot};

use crate::{
    Error, Payload,
    feed::{Feed, Next},
};

/// One message on a channel.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Publication {
    /// Where.
    pub channel: ChannelName,
    /// What.
    pub data: Payload,
    /// Its place in the channel: rises by one from publication to publication;
    /// absent where the server knows no positions.
    pub offset: Option<u64>,
}

/// The publications of a channel, from when the server has acknowledged the
/// subscription; a stream.
///
/// It lives over all connections of the client, and on a Muster server goes on
/// after each where the last one ended, without a hole and without a repeat;
/// where that is impossible, [`SubscriptionError::Missed`] stands in the hole's
/// place. Dropping it unsubscribes, unless
/// the client has another subscription to the same channel.
#[derive(Debug)]
pub struct Subscription {
    // Before `release`: the task must never see a release and a living feed.
    pub(crate) feed: Feed<Result<Publication, SubscriptionError>, SubscriptionError>,
    /// Resolves when the server has answered; taken once it was awaited.
    pub(crate) acknowledgement: Option<oneshot::Receiver<Result<(), Error>>>,
    pub(crate) release: Release,
}

/// Why a subscription is not whole, or ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SubscriptionError {
    /// The stream was consumed too slowly, and publications were dropped here;
    /// it goes on.
    #[error("{missed} publications were dropped because they were consumed too slowly")]
    Lagged {
        /// How many.
        missed: u64,
    },
    /// Publications before this are missing and will not come: the client was away
    /// for longer than they are kept, or the channel's log was lost. It goes on.
    #[error("publications are missing that are not kept any more")]
    Missed,
    /// The server refused the subscription; the last item.
    #[error("the server refused the subscription")]
    Refused(#[source] ServerError),
    /// The server ended the subscription; the last item.
    #[error("kicked out of the channel")]
    KickedOut {
        /// The server's word on it.
        message: Option<String>,
    },
    /// The client has ended for good; the last item.
    #[error("the client ended with {code}")]
    Ended {
        /// How it ended.
        code: CloseCode,
    },
}

impl Subscription {
    /// The channel's name.
    #[must_use]
    pub fn channel(&self) -> &ChannelName {
        &self.release.channel
    }

    /// Waits until the server has acknowledged the subscription; at once if it
    /// has.
    ///
    /// Not limited in time: while there is no connection, the client goes on
    /// trying. Cancel-safe.
    ///
    /// # Errors
    /// When the server refuses, or the client ends.
    pub async fn acknowledged(&mut self) -> Result<(), Error> {
        let Some(acknowledgement) = &mut self.acknowledgement else {
            return Ok(());
        };
        let result = acknowledgement.await;
        self.acknowledgement = None;
        result.unwrap_or(Err(Error::Ended {
            code: CloseCode::NORMAL,
        }))
    }
}

impl Stream for Subscription {
    type Item = Result<Publication, SubscriptionError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(ready!(self.feed.poll_next(cx)).map(|next| match next {
            Next::Item(item) => item,
            Next::Missed(missed) => Err(SubscriptionError::Lagged { missed }),
            Next::End(error) => Err(error),
        }))
    }
}

/// Tells the task that a subscription was dropped.
#[derive(Debug)]
pub(crate) struct Release {
    pub(crate) channel: ChannelName,
    pub(crate) id: u64,
    pub(crate) releases: Arc<Releases>,
}

/// Subscriptions that were dropped and that the task has not seen yet; never
/// more than there were subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Releases {
    dropped: Mutex<Vec<(ChannelName, u64)>>,
    pub(crate) changed: Notify,
}

impl Releases {
    pub(crate) fn take(&self) -> Vec<(ChannelName, u64)> {
        std::mem::take(&mut *self.dropped.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let dropped = (self.channel.clone(), self.id);
        self.releases
            .dropped
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(dropped);
        self.releases.changed.notify_one();
    }
}
