//! A bounded queue from the task to one consumer that may be slow.
//!
//! When it is full the newest items are dropped, and the consumer learns how
//! many at the place where they are missing.

use std::{
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use tokio::sync::mpsc;

/// A queue for `capacity` items of `T`, which may end with an `E`.
pub(crate) fn feed<T, E>(capacity: usize) -> (Feeder<T, E>, Feed<T, E>) {
    let (sender, items) = mpsc::channel(capacity.max(1));
    let end = Arc::new(OnceLock::new());
    let feeder = Feeder {
        items: sender,
        missed: 0,
        end: Arc::clone(&end),
    };
    (
        feeder,
        Feed {
            items,
            missed_at_end: 0,
            end: Some(end),
        },
    )
}

/// The task's side.
#[derive(Debug)]
pub(crate) struct Feeder<T, E> {
    items: mpsc::Sender<Item<T>>,
    /// Items dropped since the last one that was queued.
    missed: u64,
    end: Arc<OnceLock<End<E>>>,
}

/// The consumer's side.
#[derive(Debug)]
pub(crate) struct Feed<T, E> {
    items: mpsc::Receiver<Item<T>>,
    missed_at_end: u64,
    end: Option<Arc<OnceLock<End<E>>>>,
}

/// What a consumer gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T, E> {
    Item(T),
    /// So many items were dropped here.
    Missed(u64),
    /// The last of all.
    End(E),
}

#[derive(Debug)]
enum Item<T> {
    One(T),
    Missed(u64),
}

#[derive(Debug)]
struct End<E> {
    missed: u64,
    reason: E,
}

/// What became of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Offer {
    Accepted,
    /// Dropped; the consumer will be told.
    Full,
    /// Nobody consumes any more.
    Gone,
}

impl<T, E> Feeder<T, E> {
    /// Queues an item, never waiting.
    pub(crate) fn offer(&mut self, item: T) -> Offer {
        if self.missed > 0 {
            match self.items.try_send(Item::Missed(self.missed)) {
                Ok(()) => self.missed = 0,
                Err(mpsc::error::TrySendError::Full(_)) => return self.miss(),
                Err(mpsc::error::TrySendError::Closed(_)) => return Offer::Gone,
            }
        }
        match self.items.try_send(Item::One(item)) {
            Ok(()) => Offer::Accepted,
            Err(mpsc::error::TrySendError::Full(_)) => self.miss(),
            Err(mpsc::error::TrySendError::Closed(_)) => Offer::Gone,
        }
    }

    /// Whether nobody consumes any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.items.is_closed()
    }

    /// Ends the queue; what is in it will still be consumed.
    pub(crate) fn finish(self, reason: E) {
        // Only `finish` sets it, and it takes the feeder.
        let _ = self.end.set(End {
            missed: self.missed,
            reason,
        });
    }

    fn miss(&mut self) -> Offer {
        self.missed += 1;
        Offer::Full
    }
}

impl<T, E: Clone> Feed<T, E> {
    /// The next item; nothing once the end was told.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Next<T, E>>> {
        match ready!(self.items.poll_recv(cx)) {
            Some(Item::One(item)) => return Poll::Ready(Some(Next::Item(item))),
            Some(Item::Missed(missed)) => return Poll::Ready(Some(Next::Missed(missed))),
            None => {}
        }
        let Some(end) = self.end.take() else {
            return Poll::Ready(None);
        };
        let Some(End { missed, reason }) = end.get() else {
            return Poll::Ready(None);
        };
        if *missed > self.missed_at_end {
            self.missed_at_end = *missed;
            let missed = *missed;
            self.end = Some(end);
            return Poll::Ready(Some(Next::Missed(missed)));
        }
        Poll::Ready(Some(Next::End(reason.clone())))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn all(mut feed: Feed<u32, char>) -> Vec<Next<u32, char>> {
        let mut all = Vec::new();
        while let Some(next) = poll_fn(|cx| feed.poll_next(cx)).await {
            all.push(next);
        }
        all
    }

    #[tokio::test]
    async fn a_slow_consumer_learns_where_how_many_items_are_missing() {
        let (mut feeder, mut feed) = feed(2);
        assert_eq!(feeder.offer(1), Offer::Accepted);
        assert_eq!(feeder.offer(2), Offer::Accepted);
        assert_eq!(feeder.offer(3), Offer::Full);
        assert_eq!(feeder.offer(4), Offer::Full);
        for expected in [1, 2] {
            let next = poll_fn(|cx| feed.poll_next(cx)).await;
            assert_eq!(next, Some(Next::Item(expected)));
        }
        assert_eq!(feeder.offer(5), Offer::Accepted);
        assert_eq!(feeder.offer(6), Offer::Full);
        feeder.finish('x');
        let expected = [
            Next::Missed(2),
            Next::Item(5),
            Next::Missed(1),
            Next::End('x'),
        ];
        assert_eq!(all(feed).await, expected);
    }

    #[tokio::test]
    async fn a_feeder_that_vanishes_ends_the_queue_without_a_reason() {
        let (mut feeder, feed) = feed(2);
        assert_eq!(feeder.offer(1), Offer::Accepted);
        drop(feeder);
        assert_eq!(all(feed).await, [Next::Item(1)]);
    }

    #[test]
    fn a_consumer_that_vanished_is_noticed() {
        let (mut feeder, feed) = feed::<u32, char>(1);
        drop(feed);
        assert_eq!(feeder.offer(1), Offer::Gone);
    }
}
