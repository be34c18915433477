//! Answers in request order (delivery.md A7).

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{CallId, ChannelName};

/// Answers that may wait beside the subscriptions' own.
pub(super) const WAITING_MAX: usize = 1024;

/// The calls that are not answered yet, and answers ready behind them.
///
/// Empty nearly always: only a subscription waits for the cluster. A publish is
/// not among them; it is answered when its owner has acked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answers(VecDeque<Answer>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Answer {
    Ready(#[serde(with = "crate::octets")] Bytes),
    Subscribing { cid: CallId, channel: ChannelName },
}

impl Answers {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Sends an answer, or keeps it until those before it are sent.
    pub(super) fn push(&mut self, frame: Bytes, out: &mut Vec<Bytes>) {
        if self.0.is_empty() {
            out.push(frame);
        } else {
            self.0.push_back(Answer::Ready(frame));
        }
    }

    /// Keeps the place of an answer that [`Self::resolve`] will give.
    pub(super) fn wait(&mut self, cid: CallId, channel: ChannelName) {
        self.0.push_back(Answer::Subscribing { cid, channel });
    }

    /// Answers everything that waits for `channel`, then sends what is ready.
    pub(super) fn resolve(
        &mut self,
        channel: &str,
        frame: impl Fn(&CallId) -> Bytes,
        out: &mut Vec<Bytes>,
    ) {
        for answer in &mut self.0 {
            if let Answer::Subscribing {
                cid,
                channel: waiting,
            } = answer
                && &**waiting == channel
            {
                *answer = Answer::Ready(frame(cid));
            }
        }
        while let Some(Answer::Ready(_)) = self.0.front() {
            if let Some(Answer::Ready(frame)) = self.0.pop_front() {
                out.push(frame);
            }
        }
        if self.0.is_empty() {
            // An idle session owns no buffers.
            self.0 = VecDeque::new();
        }
    }
}
