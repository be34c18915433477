//! Live connections that go from one worker to another: the TCP connection, the
//! WebSocket and the session go on, and the client notices nothing (architecture.md
//! section 5, delivery.md D).
//!
//! [`giving`] and [`taking`] decide, [`message`] and [`packets`] carry what the two
//! say, `engine/hand_over.rs` does it to connections, and the drivers here connect
//! them.

pub(crate) mod counters;
mod give;
mod giving;
mod message;
mod packets;
mod take;
mod taking;

use std::{
    collections::VecDeque,
    future::poll_fn,
    os::fd::OwnedFd,
    path::PathBuf,
    task::{Context, Poll},
};

use muster_daemon::NodeArgs;
use muster_proto::control::{HandOver, HandedOver};
use muster_wire::Millis;
use tokio::sync::mpsc;
use tracing::warn;

pub(crate) use self::counters::Counters;
use self::{give::Giver, take::Taker};
use crate::engine::Engine;

/// Workers that hand connections over to this one at the same time.
const TAKERS_MAX: usize = 64;

/// Orders to hand over that wait for an earlier one.
const WAITING_MAX: usize = 8;

/// Who this worker is.
#[derive(Debug, Clone)]
pub(crate) struct Own {
    pub(crate) slot: u32,
    pub(crate) incarnation: u64,
    pub(crate) runtime_dir: PathBuf,
}

/// Everything that is on its way to or from this worker.
#[derive(Debug)]
pub(crate) struct Handovers {
    own: Own,
    giver: Option<Giver>,
    /// Orders that come after it.
    waiting: VecDeque<HandOver>,
    takers: Vec<Taker>,
    offered: mpsc::Receiver<OwnedFd>,
}

/// Something happened.
#[derive(Debug)]
pub(crate) enum News {
    Offered(OwnedFd),
    Giver(give::Input),
    Taker(usize, take::Input),
}

impl Handovers {
    pub(crate) fn new(args: &NodeArgs, offered: mpsc::Receiver<OwnedFd>) -> Self {
        Self {
            own: Own {
                slot: args.slot,
                incarnation: args.incarnation,
                runtime_dir: args.runtime_dir.clone(),
            },
            giver: None,
            waiting: VecDeque::new(),
            takers: Vec::new(),
            offered,
        }
    }

    /// Waits for what happens next. Cancel-safe.
    pub(crate) async fn next(&mut self) -> News {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<News> {
        if let Some(giver) = &mut self.giver
            && let Poll::Ready(input) = giver.poll_input(cx)
        {
            return Poll::Ready(News::Giver(input));
        }
        for (index, taker) in self.takers.iter_mut().enumerate() {
            if let Poll::Ready(input) = taker.poll_input(cx) {
                return Poll::Ready(News::Taker(index, input));
            }
        }
        match self.offered.poll_recv(cx) {
            Poll::Ready(Some(socket)) => Poll::Ready(News::Offered(socket)),
            // Without its socket in the runtime directory nobody reaches it.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    pub(crate) fn handle(&mut self, news: News, engine: &mut Engine) {
        match news {
            News::Offered(socket) => {
                if self.takers.len() >= TAKERS_MAX {
                    warn!("Too many workers hand connections over at once; refused one.");
                    return;
                }
                match Taker::new(socket) {
                    Ok(taker) => self.takers.push(taker),
                    Err(error) => warn!(%error, "Cannot take connections over."),
                }
            }
            News::Giver(input) => {
                if let Some(giver) = &mut self.giver {
                    giver.handle(input, engine);
                }
            }
            News::Taker(index, input) => {
                if let Some(taker) = self.takers.get_mut(index) {
                    taker.handle(input, engine);
                }
            }
        }
    }

    /// Ends a turn of the worker: what waited for time or subscriptions.
    pub(crate) fn finish_turn(&mut self, engine: &mut Engine) -> Option<HandedOver> {
        for taker in &mut self.takers {
            taker.finish_turn(engine);
        }
        let before = self.takers.len();
        self.takers.retain(|taker| !taker.is_over());
        // What was announced by one may be needed by another.
        if before > 0 && self.takers.is_empty() {
            engine.let_go();
        }
        let giver = self.giver.as_mut()?;
        giver.finish_turn(engine);
        let report = giver.take_report(engine);
        if giver.is_over() {
            let next = self.waiting.pop_front();
            self.giver = next.map(|order| Giver::new(order, self.own.clone(), engine));
        }
        report
    }

    /// Whether clients stand still until the next turn, here or elsewhere.
    pub(crate) fn is_under_way(&self) -> bool {
        self.giver.is_some() || !self.takers.is_empty()
    }

    /// Whether connections are being handed over.
    pub(crate) fn is_giving(&self) -> bool {
        self.giver.is_some()
    }

    /// When to end a turn although nothing else has happened.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        let takers = self.takers.iter().filter_map(Taker::wake_at);
        let giver = self.giver.as_ref().and_then(Giver::wake_at);
        takers.chain(giver).min()
    }

    /// Begins to hand connections over.
    pub(crate) fn begin(&mut self, order: HandOver, engine: &mut Engine) {
        match &mut self.giver {
            Some(giver) if giver.is_for(&order) => giver.goes_on(&order),
            Some(_) if self.waiting.len() < WAITING_MAX => self.waiting.push_back(order),
            // The orchestrator gives one at a time.
            Some(_) => warn!(id = order.id, "Too many orders to hand over; ignored one."),
            None => self.giver = Some(Giver::new(order, self.own.clone(), engine)),
        }
    }

    /// What was ordered is not wanted any more.
    pub(crate) fn call_off(&mut self, id: u64, engine: &mut Engine) {
        self.waiting.retain(|order| order.id != id);
        if let Some(giver) = &mut self.giver {
            giver.call_off(id, engine);
        }
    }

    /// This worker has no time for it any more.
    pub(crate) fn stop(&mut self, engine: &mut Engine) {
        self.waiting.clear();
        if let Some(giver) = &mut self.giver {
            giver.stop(engine);
        }
        for taker in &mut self.takers {
            taker.stop(engine);
        }
    }
}

#[cfg(test)]
mod tests;
