//! What one process counts.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::sockets::Client;
use crate::{
    clock::Micros,
    delays::Delays,
    messages::{Outcome, Sent, Window},
    series::Series,
    stamp::Stamp,
};

/// Longest time that a histogram holds; longer ones count as this.
const HISTOGRAM_MAX_US: u64 = 120_000_000;
const HISTOGRAM_DIGITS: u8 = 3;

/// A histogram of microseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HISTOGRAM_MAX_US, HISTOGRAM_DIGITS)
        .expect("the bounds are in order")
}

/// Everything that is counted over all connections of the process.
#[derive(Debug)]
pub(super) struct Accounts {
    pub(super) unexpected: u64,
    pub(super) closed: BTreeMap<u16, u64>,
    pub(super) reconnected: u64,
    pub(super) last_reconnect: Option<Micros>,
    pub(super) processor_us: u64,
    delivered_in_window: u64,
    latency: Histogram<u64>,
    series: Series,
    acks: Histogram<u64>,
    lag: Histogram<u64>,
    /// By channel, when something arrived last.
    last_delivery: Vec<Option<Micros>>,
    longest_silence: Micros,
    delays: Delays,
}

impl Accounts {
    pub(super) fn new(channels: u32) -> Self {
        Self {
            unexpected: 0,
            closed: BTreeMap::new(),
            reconnected: 0,
            last_reconnect: None,
            processor_us: 0,
            delivered_in_window: 0,
            latency: histogram(),
            series: Series::default(),
            acks: histogram(),
            lag: histogram(),
            last_delivery: vec![None; channels as usize],
            longest_silence: 0,
            delays: Delays::default(),
        }
    }

    /// Takes a delivery to `client`.
    pub(super) fn deliver(
        &mut self,
        client: &mut Client,
        stamp: Stamp,
        arrived: Micros,
        window: Window,
    ) {
        if stamp.channel != client.channel || !client.subscribes {
            client.tally.receive_foreign();
            return;
        }
        client.tally.receive(stamp);
        if window.contains(arrived) {
            self.delivered_in_window += 1;
            let last = self.last_delivery[stamp.channel as usize].replace(arrived);
            let silence = last.map_or(0, |last| arrived.saturating_sub(last));
            self.longest_silence = self.longest_silence.max(silence);
        }
        if window.contains(stamp.intended) {
            let latency = arrived.saturating_sub(stamp.intended);
            self.latency.saturating_record(latency);
            self.delays.record(stamp.intended, arrived);
            self.series
                .record(arrived.saturating_sub(window.from), latency);
        }
    }

    /// A publication was answered.
    pub(super) fn answered(&mut self, intended: Option<Micros>, at: Micros, window: Window) {
        if let Some(intended) = intended.filter(|intended| window.contains(*intended)) {
            self.acks.saturating_record(at.saturating_sub(intended));
            self.delays.record(intended, at);
        }
    }

    /// A publication left this much after its time.
    pub(super) fn sent_late(&mut self, lag: Micros) {
        self.lag.saturating_record(lag);
    }

    /// Adds up the connections' accounts. `sent`: by channel, then by publisher.
    pub(super) fn outcome(&self, clients: &[Client], sent: &[Vec<Sent>]) -> Outcome {
        let mut outcome = Outcome {
            delivered_in_window: self.delivered_in_window,
            unexpected: self.unexpected,
            closed: self.closed.clone(),
            reconnected: self.reconnected,
            last_reconnect: self.last_reconnect,
            latency: pairs(&self.latency),
            series: self.series.clone(),
            acks: pairs(&self.acks),
            lag: pairs(&self.lag),
            longest_silence: self.longest_silence,
            delays: self.delays.clone(),
            processor_us: self.processor_us,
            ..Outcome::default()
        };
        for client in clients {
            if let Some(publisher) = &client.publisher {
                outcome.published += u64::from(publisher.account().count);
                outcome.acked += publisher.acked();
                outcome.errors += publisher.failed();
                outcome.unanswered += publisher.unanswered();
                outcome.skipped += publisher.skipped();
            }
            if client.subscribes && client.was_ready {
                add_subscriber(&mut outcome, client, &sent[client.channel as usize]);
            }
        }
        outcome
    }
}

fn add_subscriber(outcome: &mut Outcome, client: &Client, sent: &[Sent]) {
    let counts = client.tally.counts();
    outcome.delivered += counts.received;
    outcome.repeated += counts.repeated;
    outcome.out_of_order += counts.out_of_order;
    outcome.foreign += counts.foreign;
    let losses = client.tally.losses(sent);
    outcome.lost += losses.lost;
    outcome.missed_away += losses.away;
    if let Some(order) = client.tally.order() {
        let first = *outcome.orders.entry(client.channel).or_insert(order);
        outcome.order_disagreements += u64::from(first != order);
    }
}

/// What every publisher of this process sent, with its channel and its number.
pub(super) fn published(clients: &[Client]) -> Vec<(u32, u32, Sent)> {
    let account = |client: &Client| {
        let publisher = client.publisher.as_ref()?;
        Some((
            client.channel,
            publisher.schedule.publisher,
            publisher.account(),
        ))
    };
    clients.iter().filter_map(account).collect()
}

pub(crate) fn pairs(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram
        .iter_recorded()
        .map(|value| (value.value_iterated_to(), value.count_at_value()))
        .collect()
}
