//! Clients that connect, subscribe, close, and begin again.

use std::{
    fs,
    io::{self, Write as _},
    os::fd::{AsFd as _, OwnedFd},
};

use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use serde::Serialize;

use super::{
    BenchError,
    clients::Event,
    clock::{Micros, SECOND, micros, now},
    conduct::{Conductor, server_usage},
    driver::{Client, Sockets, histogram, pairs},
    messages::{ChildMessage, Outcome, ParentMessage, Window},
    options::{RunOptions, Scenario},
    page,
    plan::Plan,
    procfs,
    report::{GENERATOR_CORES_MAX, Quantiles, float, print_quantiles},
};

const STDIN: u64 = u64::MAX;
const READ_BUFFER_BYTES: usize = 16 << 10;
/// Longest wait for a socket before the time is looked at.
const WAIT: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// What a run found. Times are in microseconds.
#[derive(Debug, Serialize)]
pub(super) struct Churned {
    pub(super) cycles: u64,
    pub(super) failed: u64,
    pub(super) cycles_per_second: f64,
    /// From the beginning of the connection to the acknowledged subscription.
    pub(super) ready_us: Quantiles,
    pub(super) generator_cores: f64,
    pub(super) busiest_generator_cores: f64,
    pub(super) server_cores: Option<f64>,
    pub(super) server_seconds_per_million: Option<f64>,
    /// Proportional set size of the server's processes before, and after.
    pub(super) server_pss_bytes: Option<(u64, u64)>,
}

/// The parent's side.
pub(super) fn run(mut conductor: Conductor<'_>) -> Result<(), BenchError> {
    let before = server_usage(&conductor.server)?;
    let mut parts = conductor.start_parts(now(), &[])?;
    let from = now();
    let warmup = micros(conductor.run.warmup);
    let mut to = from + warmup + micros(conductor.run.duration);
    let (interrupt, progress) = (&conductor.interrupt, &mut conductor.progress);
    if !interrupt.sleep_until(to, || progress.show_time("measuring", (from, to))) {
        to = now();
        if to <= from + warmup {
            return Err(BenchError::Interrupted);
        }
        parts.tell(&ParentMessage::Stop { at: to })?;
    }
    let after = server_usage(&conductor.server)?;
    let outcomes = parts.outcomes()?;
    conductor.progress.clear();

    let mut ready = histogram();
    for (value, count) in outcomes.iter().flat_map(|outcome| &outcome.latency) {
        ready.saturating_record_n(*value, *count);
    }
    let seconds = float(to - from - warmup) / float(SECOND);
    let cycles = outcomes.iter().map(|outcome| outcome.delivered).sum();
    let used = before.zip(after).map(|(before, after)| {
        let used = after.processor_us.saturating_sub(before.processor_us);
        float(used) / float(SECOND)
    });
    let whole = float(to - from) / float(SECOND);
    let cores = outcomes
        .iter()
        .map(|outcome| float(outcome.processor_us) / float(SECOND) / whole);
    let all_cycles = float(cycles) * whole / seconds;
    let churned = Churned {
        cycles,
        failed: outcomes.iter().map(|outcome| outcome.errors).sum(),
        cycles_per_second: float(cycles) / seconds,
        ready_us: Quantiles::new(&ready),
        generator_cores: cores.clone().sum(),
        busiest_generator_cores: cores.fold(0.0, f64::max),
        server_cores: used.map(|used| used / whole),
        server_seconds_per_million: used
            .filter(|_| cycles > 0)
            .map(|used| used * 1e6 / all_cycles),
        server_pss_bytes: before
            .zip(after)
            .map(|(before, after)| (before.pss_bytes, after.pss_bytes)),
    };
    churned.publish(conductor.run)
}

/// One process's side.
pub(super) fn run_part(run: &RunOptions, clients: u32, index: u32) -> Result<(), BenchError> {
    let plan = Plan::new(&Scenario::Churn { clients });
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
        .map_err(|error| BenchError::io("cannot create an epoll descriptor")(error.into()))?;
    let roles = plan.roles.iter().enumerate();
    let mut part = Part {
        clients: roles.map(|(n, role)| Client::new(n, role, 0)).collect(),
        began: vec![0; plan.roles.len()],
        sockets: Sockets::new(run, index)?,
        epoll,
        run_id: run.run_id,
        window: Window::default(),
        ready: histogram(),
        cycles: 0,
        failed: 0,
    };
    let from = now();
    part.window = Window {
        from: from + micros(run.warmup),
        to: from + micros(run.warmup + run.duration),
    };
    part.cycle_on()?;
    let outcome = Outcome {
        delivered: part.cycles,
        errors: part.failed,
        latency: pairs(&part.ready),
        processor_us: procfs::own_processor_us(),
        ..Outcome::default()
    };
    let mut line = serde_json::to_vec(&ChildMessage::Outcome(Box::new(outcome)))
        .map_err(|error| BenchError::Message(error.to_string()))?;
    line.push(b'\n');
    io::stdout()
        .write_all(&line)
        .map_err(BenchError::io("cannot write to the parent"))
}

#[derive(Debug)]
struct Part {
    clients: Vec<Client>,
    /// When each client's present cycle began.
    began: Vec<Micros>,
    sockets: Sockets,
    epoll: OwnedFd,
    run_id: u64,
    window: Window,
    ready: Histogram<u64>,
    cycles: u64,
    failed: u64,
}

impl Part {
    /// Cycles until the window ends, or the parent says something: there is only
    /// one thing that it can say.
    fn cycle_on(&mut self) -> Result<(), BenchError> {
        let stdin = epoll::EventData::new_u64(STDIN);
        epoll::add(
            &self.epoll,
            io::stdin().as_fd(),
            stdin,
            epoll::EventFlags::IN,
        )
        .map_err(|error| BenchError::io("cannot watch a descriptor")(error.into()))?;
        for index in 0..self.clients.len() {
            self.begin(index)?;
        }
        let mut events = Vec::with_capacity(1024);
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        while now() < self.window.to {
            events.clear();
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, Some(&WAIT)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(BenchError::io("cannot wait for sockets")(error.into())),
            }
            for event in &events {
                if event.data.u64() == STDIN {
                    self.window.to = now();
                    return Ok(());
                }
                let index = usize::try_from(event.data.u64()).expect("it came from a usize");
                self.on_socket(index, event.flags, &mut buffer)?;
            }
        }
        Ok(())
    }

    fn begin(&mut self, index: usize) -> Result<(), BenchError> {
        self.began[index] = now();
        let client = &mut self.clients[index];
        self.sockets
            .connect(&self.epoll, index, client, self.run_id)
    }

    fn on_socket(
        &mut self,
        index: usize,
        flags: epoll::EventFlags,
        buffer: &mut [u8],
    ) -> Result<(), BenchError> {
        let client = &mut self.clients[index];
        let (mut is_ready, mut has_ended) = (false, false);
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
        {
            loop {
                match client.read(buffer) {
                    Ok(0) => has_ended = true,
                    Ok(len) => {
                        client.receive(&mut buffer[..len], |_, event| {
                            is_ready |= event == Event::Ready;
                        });
                        if len == buffer.len() {
                            continue;
                        }
                    }
                    Err(rustix::io::Errno::AGAIN) => {}
                    Err(_) => has_ended = true,
                }
                break;
            }
        }
        let is_counted = self.window.contains(now());
        if is_ready {
            client.was_ready = true;
            client.send_close();
            if is_counted {
                self.ready.saturating_record(now() - self.began[index]);
            }
        }
        self.sockets.flush(&self.epoll, index, client);
        if has_ended {
            let was_good = std::mem::take(&mut client.was_ready);
            client.drop_socket();
            self.cycles += u64::from(is_counted && was_good);
            self.failed += u64::from(is_counted && !was_good);
            self.begin(index)?;
        }
        Ok(())
    }
}

impl Churned {
    fn publish(&self, run: &RunOptions) -> Result<(), BenchError> {
        if self.busiest_generator_cores > GENERATOR_CORES_MAX && !run.force {
            return Err(BenchError::Bottleneck {
                cores: self.busiest_generator_cores,
            });
        }
        self.print(run.json)
            .map_err(BenchError::io("cannot print the report"))?;
        if let Some(path) = &run.html {
            fs::write(path, page::of_churn(self))
                .map_err(BenchError::io("cannot write the page"))?;
        }
        (self.failed == 0).then_some(()).ok_or(BenchError::Unsound)
    }

    fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            serde_json::to_writer_pretty(&mut out, self)?;
            return writeln!(out);
        }
        writeln!(
            out,
            "cycles        {} ({:.0} per second), {} failed",
            self.cycles, self.cycles_per_second, self.failed
        )?;
        print_quantiles(&mut out, "to subscribed", &self.ready_us)?;
        writeln!(out, "generator     {:.2} cores", self.generator_cores)?;
        if let (Some(cores), Some(seconds)) = (self.server_cores, self.server_seconds_per_million) {
            writeln!(
                out,
                "server        {cores:.2} cores, {seconds:.2} s per million cycles"
            )?;
        }
        if let Some((before, after)) = self.server_pss_bytes {
            let mib = |bytes| float(bytes) / 1_048_576.0;
            writeln!(
                out,
                "memory (PSS)  {:.1} MiB before, {:.1} MiB after",
                mib(before),
                mib(after)
            )?;
        }
        Ok(())
    }
}
