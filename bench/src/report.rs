//! What a run found, for people and for programs.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{
    BenchError,
    clock::{Micros, SECOND},
    delays::Delays,
    deploy::{Deployed, Steps},
    driver::histogram,
    hostile::Hostilities,
    messages::{Connected, Outcome, Window},
    options::RunOptions,
    page,
    rounds::{self, Round},
    series::{Series, Summary},
};

/// A process that uses more of its one thread's core measures itself.
pub(super) const GENERATOR_CORES_MAX: f64 = 0.95;

/// The result of a run. Times are in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) connects: Connects,
    pub(super) expected_deliveries_per_second: f64,
    pub(super) deliveries_per_second: f64,
    pub(super) published: u64,
    pub(super) acked: u64,
    pub(super) errors: u64,
    pub(super) unanswered: u64,
    pub(super) skipped_without_connection: u64,
    pub(super) delivered: u64,
    /// Acknowledged, but not delivered to a subscriber that was connected.
    pub(super) lost: u64,
    /// Acknowledged, and passed while a subscriber was not connected.
    pub(super) missed_while_disconnected: u64,
    pub(super) repeated: u64,
    pub(super) out_of_order: u64,
    pub(super) foreign: u64,
    /// Subscribers that saw another order than the first of their channel.
    pub(super) order_disagreements: u64,
    pub(super) unexpected_packets: u64,
    pub(super) closed: BTreeMap<u16, u64>,
    /// The sum of `closed`.
    pub(super) disconnects: u64,
    pub(super) reconnected: u64,
    pub(super) longest_silence_us: Micros,
    pub(super) latency_us: Quantiles,
    /// From the intended time of sending to the acknowledgement.
    pub(super) ack_us: Quantiles,
    /// How late the generator itself was.
    pub(super) send_lag_us: Quantiles,
    pub(super) generator_cores: f64,
    /// What the busiest of the generator's processes, of one thread each, used.
    pub(super) busiest_generator_cores: f64,
    /// Second by second.
    pub(super) series: Vec<Summary>,
    /// Shares of all deliveries, and the latency that they stayed within.
    pub(super) latency_curve: Vec<(f64, u64)>,
    pub(super) server: Option<ServerProcessor>,
    pub(super) memory: Option<Memory>,
    /// From the kill to the last connection that was there again.
    pub(super) last_reconnect_after_kill_us: Option<Micros>,
    pub(super) rounds: Vec<Round>,
    /// Of the rounds, by signal: how long publications took at most.
    pub(super) pauses_us: BTreeMap<&'static str, Quantiles>,
    /// Of the scenario `deploy`.
    pub(super) deploy: Option<Deployed>,
    pub(super) hostilities: Hostilities,
    /// A disconnect breaks a promise.
    #[serde(skip)]
    pub(super) must_stay_connected: bool,
    #[serde(skip)]
    seconds: f64,
    #[serde(skip)]
    delivered_in_window: u64,
    #[serde(skip)]
    last_reconnect: Option<Micros>,
}

#[derive(Debug, Serialize)]
pub(super) struct Connects {
    pub(super) ready: u64,
    pub(super) failed: u64,
    pub(super) per_second: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Quantiles {
    pub(super) p50: u64,
    pub(super) p90: u64,
    pub(super) p99: u64,
    pub(super) p999: u64,
    pub(super) max: u64,
    pub(super) count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct ServerProcessor {
    pub(super) cores: f64,
    pub(super) seconds_per_million_deliveries: Option<f64>,
    pub(super) microseconds_per_publication: Option<f64>,
}

/// Proportional set size of all processes of the server.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) empty_bytes: u64,
    pub(super) held_bytes: u64,
    pub(super) bytes_per_connection: Option<u64>,
}

/// Quantiles on the page: equally far apart on a scale on which each nine is as
/// wide as the others.
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    const NINES: u32 = 5;
    const STEPS: u32 = 8;
    if histogram.is_empty() {
        return Vec::new();
    }
    let share = |step: u32| 1.0 - 10_f64.powf(-f64::from(step) / f64::from(STEPS));
    let shares = (0..=NINES * STEPS).map(share);
    shares
        .map(|share| (share, histogram.value_at_quantile(share)))
        .collect()
}

/// What all processes measured, as one histogram.
fn merged(outcomes: &[Outcome], of: fn(&Outcome) -> &Vec<(u64, u64)>) -> Histogram<u64> {
    let mut histogram = histogram();
    for (value, count) in outcomes.iter().flat_map(of) {
        histogram.saturating_record_n(*value, *count);
    }
    histogram
}

fn closed(outcomes: &[Outcome]) -> BTreeMap<u16, u64> {
    let mut closed = BTreeMap::new();
    for (code, count) in outcomes.iter().flat_map(|outcome| &outcome.closed) {
        *closed.entry(*code).or_default() += count;
    }
    closed
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(super) fn float(n: u64) -> f64 {
    n as f64
}

impl Connects {
    pub(super) fn new(all: &[Connected]) -> Self {
        let ready = all.iter().map(|part| part.ready).sum();
        let began = all.iter().map(|part| part.began).min().unwrap_or(0);
        let ended = all.iter().map(|part| part.ended).max().unwrap_or(0);
        let seconds = float(ended.saturating_sub(began)) / float(SECOND);
        Self {
            ready,
            failed: all.iter().map(|part| part.failed).sum(),
            per_second: if seconds > 0.0 {
                float(ready) / seconds
            } else {
                0.0
            },
        }
    }
}

impl Memory {
    pub(super) fn new(empty_bytes: u64, held_bytes: u64, connections: u64) -> Self {
        let bytes_per_connection = held_bytes
            .saturating_sub(empty_bytes)
            .checked_div(connections);
        Self {
            empty_bytes,
            held_bytes,
            bytes_per_connection,
        }
    }
}

impl Quantiles {
    pub(super) fn new(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
            count: histogram.len(),
        }
    }
}

impl Report {
    pub(super) fn new(
        window: Window,
        expected_deliveries_per_second: f64,
        connects: Connects,
        outcomes: &[Outcome],
    ) -> Self {
        let seconds = float(window.to - window.from) / float(SECOND);
        let latency = merged(outcomes, |outcome| &outcome.latency);
        let closed = closed(outcomes);
        let mut orders = BTreeMap::new();
        let mut disagreements = 0;
        for outcome in outcomes {
            for (channel, order) in &outcome.orders {
                let first = *orders.entry(*channel).or_insert(*order);
                disagreements += u64::from(first != *order);
            }
            disagreements += outcome.order_disagreements;
        }
        let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
        let series: Vec<_> = outcomes.iter().map(|outcome| &outcome.series).collect();
        let delivered_in_window = sum(|outcome| outcome.delivered_in_window);
        Self {
            connects,
            expected_deliveries_per_second,
            deliveries_per_second: float(delivered_in_window) / seconds,
            published: sum(|outcome| outcome.published),
            acked: sum(|outcome| outcome.acked),
            errors: sum(|outcome| outcome.errors),
            unanswered: sum(|outcome| outcome.unanswered),
            skipped_without_connection: sum(|outcome| outcome.skipped),
            delivered: sum(|outcome| outcome.delivered),
            lost: sum(|outcome| outcome.lost),
            missed_while_disconnected: sum(|outcome| outcome.missed_away),
            repeated: sum(|outcome| outcome.repeated),
            out_of_order: sum(|outcome| outcome.out_of_order),
            foreign: sum(|outcome| outcome.foreign),
            order_disagreements: disagreements,
            unexpected_packets: sum(|outcome| outcome.unexpected),
            disconnects: closed.values().sum(),
            closed,
            reconnected: sum(|outcome| outcome.reconnected),
            longest_silence_us: outcomes
                .iter()
                .map(|o| o.longest_silence)
                .max()
                .unwrap_or(0),
            latency_us: Quantiles::new(&latency),
            ack_us: Quantiles::new(&merged(outcomes, |outcome| &outcome.acks)),
            send_lag_us: Quantiles::new(&merged(outcomes, |outcome| &outcome.lag)),
            generator_cores: float(sum(|outcome| outcome.processor_us)) / float(SECOND) / seconds,
            busiest_generator_cores: outcomes
                .iter()
                .map(|outcome| float(outcome.processor_us) / float(SECOND) / seconds)
                .fold(0.0, f64::max),
            series: Series::summarise(&series),
            latency_curve: curve(&latency),
            server: None,
            memory: None,
            last_reconnect_after_kill_us: None,
            rounds: Vec::new(),
            pauses_us: BTreeMap::new(),
            deploy: None,
            must_stay_connected: false,
            hostilities: Hostilities::default(),
            seconds,
            delivered_in_window,
            last_reconnect: outcomes
                .iter()
                .filter_map(|outcome| outcome.last_reconnect)
                .max(),
        }
    }

    pub(super) fn set_server_processor(&mut self, used: Option<Micros>) {
        self.server = used.map(|used| {
            let used = float(used) / float(SECOND);
            let each = |count: u64| (count > 0).then(|| used * 1e6 / float(count));
            ServerProcessor {
                cores: used / self.seconds,
                seconds_per_million_deliveries: each(self.delivered_in_window),
                // Each left late, if only by a microsecond.
                microseconds_per_publication: each(self.send_lag_us.count),
            }
        });
    }

    pub(super) fn set_events(
        &mut self,
        (mut rounds, steps): (Vec<Round>, Option<Steps>),
        outcomes: &[Outcome],
    ) {
        let mut delays = Delays::default();
        for outcome in outcomes {
            delays.add(&outcome.delays);
        }
        self.pauses_us = rounds::pauses(&mut rounds, &delays);
        self.rounds = rounds;
        self.deploy = steps.map(|steps| steps.finish(&delays));
    }

    pub(super) fn set_killed(&mut self, at: Option<Micros>) {
        if let (Some(killed), Some(back)) = (at, self.last_reconnect) {
            self.last_reconnect_after_kill_us = Some(back.saturating_sub(killed));
        }
    }

    /// What a report is for: everything on standard output, the page if one is
    /// wanted, and an error if a promise was broken.
    pub(super) fn publish(&self, scenario: &str, run: &RunOptions) -> Result<(), BenchError> {
        if let Some(cores) = self.bottleneck()
            && !run.force
        {
            return Err(BenchError::Bottleneck { cores });
        }
        print(self, run.json).map_err(BenchError::io("cannot print the report"))?;
        if let Some(path) = &run.html {
            fs::write(path, page::of_run(scenario, self))
                .map_err(BenchError::io("cannot write the page"))?;
        }
        self.is_sound().then_some(()).ok_or(BenchError::Unsound)
    }

    /// What the generator's busiest process used, if that was all it could get.
    pub(super) fn bottleneck(&self) -> Option<f64> {
        let cores = self.busiest_generator_cores;
        (cores > GENERATOR_CORES_MAX).then_some(cores)
    }

    /// Whether the promises were kept: all connected, and where that was promised
    /// stayed so, every update was made, and what was acknowledged arrived once and in order.
    pub(super) fn is_sound(&self) -> bool {
        let stayed = !self.must_stay_connected || self.disconnects == 0;
        stayed
            && self.deploy.as_ref().is_none_or(Deployed::is_sound)
            && self.connects.failed == 0
            && [
                self.lost,
                self.repeated,
                self.out_of_order,
                self.foreign,
                self.order_disagreements,
                self.unexpected_packets,
            ]
            .iter()
            .all(|count| *count == 0)
    }
}

/// Writes the report to standard output.
fn print(report: &Report, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return writeln!(out);
    }
    let Report {
        connects,
        latency_us,
        ack_us,
        send_lag_us,
        ..
    } = report;
    writeln!(
        out,
        "connections   {} ready, {} failed, {:.0} per second; closed during the run {:?}, back {}",
        connects.ready, connects.failed, connects.per_second, report.closed, report.reconnected
    )?;
    writeln!(
        out,
        "published     {} ({} acked, {} errors, {} unanswered, {} skipped without connection)",
        report.published,
        report.acked,
        report.errors,
        report.unanswered,
        report.skipped_without_connection
    )?;
    writeln!(
        out,
        "delivered     {}; {:.0} per second, {:.0} expected",
        report.delivered, report.deliveries_per_second, report.expected_deliveries_per_second
    )?;
    writeln!(
        out,
        "wrong         {} lost, {} repeated, {} out of order, {} foreign, {} orders differ, \
         {} unexpected; {} missed while disconnected",
        report.lost,
        report.repeated,
        report.out_of_order,
        report.foreign,
        report.order_disagreements,
        report.unexpected_packets,
        report.missed_while_disconnected
    )?;
    print_quantiles(&mut out, "latency", latency_us)?;
    print_quantiles(&mut out, "acknowledged", ack_us)?;
    print_quantiles(&mut out, "send lag", send_lag_us)?;
    writeln!(
        out,
        "silence       at most {:.1} ms",
        float(report.longest_silence_us) / 1e3
    )?;
    writeln!(
        out,
        "generator     {:.2} cores, its busiest process {:.2}",
        report.generator_cores, report.busiest_generator_cores
    )?;
    print_server(&mut out, report)?;
    print_trouble(&mut out, report)
}

fn print_server(out: &mut impl Write, report: &Report) -> io::Result<()> {
    if let Some(server) = &report.server {
        write!(out, "server        {:.2} cores", server.cores)?;
        if let Some(seconds) = server.seconds_per_million_deliveries {
            write!(out, ", {seconds:.2} s per million deliveries")?;
        }
        if let Some(micros) = server.microseconds_per_publication {
            write!(out, ", {micros:.0} µs per publication")?;
        }
        writeln!(out)?;
    }
    if let Some(memory) = &report.memory {
        writeln!(
            out,
            "memory (PSS)  {:.1} MiB, empty {:.1} MiB, {} bytes per connection",
            float(memory.held_bytes) / 1_048_576.0,
            float(memory.empty_bytes) / 1_048_576.0,
            memory.bytes_per_connection.unwrap_or(0)
        )?;
    }
    if let Some(back) = report.last_reconnect_after_kill_us {
        writeln!(
            out,
            "after kill    last connection back after {:.0} ms",
            float(back) / 1e3
        )?;
    }
    Ok(())
}

fn print_trouble(out: &mut impl Write, report: &Report) -> io::Result<()> {
    if let Some(deployed) = &report.deploy {
        deployed.print(out)?;
    }
    let ms = |micros: Option<Micros>| {
        micros.map_or("never".into(), |micros| {
            format!("{:.0} ms", float(micros) / 1e3)
        })
    };
    for round in &report.rounds {
        writeln!(
            out,
            "{:<13} {} replaced after {}, whole after {}, pause {}",
            round.signal,
            round.node,
            ms(round.replaced_us),
            ms(round.whole_us),
            ms(round.pause_us)
        )?;
    }
    for (signal, pauses) in &report.pauses_us {
        print_quantiles(out, &format!("pause {signal}"), pauses)?;
    }
    let Hostilities {
        flood_messages,
        flood_closed,
        stalled_open,
        stalled_closed,
        stalled_deliveries,
    } = report.hostilities;
    if flood_messages > 0 {
        let fate = if flood_closed {
            "cut off"
        } else {
            "still connected"
        };
        writeln!(out, "flood         {flood_messages} messages sent, {fate}")?;
    }
    if stalled_open + stalled_closed > 0 {
        writeln!(
            out,
            "stalled       {stalled_open} still connected, {stalled_closed} cut off; \
             {stalled_deliveries} publications read at last"
        )?;
    }
    Ok(())
}

pub(super) fn print_quantiles(out: &mut impl Write, name: &str, of: &Quantiles) -> io::Result<()> {
    let ms = |micros| float(micros) / 1e3;
    writeln!(
        out,
        "{name:<13} p50 {:.2} ms, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2} ({} measured)",
        ms(of.p50),
        ms(of.p90),
        ms(of.p99),
        ms(of.p999),
        ms(of.max),
        of.count
    )
}
