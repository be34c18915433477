//! One process with its share of the connections: the epoll loop.

mod accounts;
mod sockets;

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::epoll,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

use self::accounts::Accounts;
pub(super) use self::{
    accounts::{histogram, pairs},
    sockets::{Client, Sockets, channel_name},
};
use super::{
    BenchError,
    clients::Event,
    clock::{Micros, SECOND, micros, now, timespec},
    messages::{ChildMessage, Connected, ParentMessage, Sent, Window},
    options::Options,
    plan::Plan,
    procfs,
    stamp::Stamp,
};

const TIMER: u64 = u64::MAX;
const STDIN: u64 = u64::MAX - 1;
const READ_BUFFER_BYTES: usize = 256 << 10;
/// Longer than the cluster waits before it says that an outcome is unknown.
const ANSWER_TIMEOUT: Micros = 8 * SECOND;
/// How often it is looked whether everything has arrived.
const SETTLE_INTERVAL: Micros = SECOND / 20;

/// What happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Publish(usize),
    Reconnect(usize),
    WindowBegins,
    WindowEnds,
    Stop,
    LookAgain,
}

/// What the process is doing.
#[derive(Debug)]
enum Stage {
    Connecting,
    /// Until the parent says when to start.
    Waiting,
    Publishing,
    /// Until all is answered.
    Answering {
        until: Micros,
    },
    /// Until the parent says what was sent.
    Reporting,
    /// Until all has arrived.
    Settling {
        sent: Vec<Vec<Sent>>,
        until: Micros,
    },
    Done,
}

#[derive(Debug)]
struct Driver<'a> {
    options: &'a Options,
    epoll: OwnedFd,
    timer: OwnedFd,
    sockets: Sockets,
    clients: Vec<Client>,
    accounts: Accounts,
    due: BinaryHeap<Reverse<(Micros, Due)>>,
    stage: Stage,
    /// Index of the next client to connect for the first time.
    unconnected: usize,
    connecting: u32,
    connected: Connected,
    window: Window,
    processor_at_start: u64,
    stdin: Vec<u8>,
    padding: String,
    scratch: Vec<u8>,
}

/// Runs this process's share and reports to the parent.
pub(super) fn run(options: &Options, index: u32) -> Result<(), BenchError> {
    let plan = Plan::new(&options.scenario);
    let mut driver = Driver::new(options, &plan, index)?;
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut events = Vec::with_capacity(1024);
    driver.connect_more()?;
    while !matches!(driver.stage, Stage::Done) {
        driver.arm_timer()?;
        events.clear();
        match epoll::wait(
            &driver.epoll,
            rustix::buffer::spare_capacity(&mut events),
            None,
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(BenchError::io("cannot wait for sockets")(error.into())),
        }
        for event in &events {
            match event.data.u64() {
                TIMER => {
                    // Only to reset it; what is due is looked up below.
                    let _ = rustix::io::read(&driver.timer, &mut [0_u8; 8]);
                }
                STDIN => driver.read_parent()?,
                index => {
                    let index = usize::try_from(index).expect("it came from a usize");
                    driver.on_socket(index, event.flags, &mut buffer)?;
                }
            }
        }
        driver.on_time()?;
        driver.advance()?;
    }
    Ok(())
}

impl<'a> Driver<'a> {
    fn new(options: &'a Options, plan: &Plan, index: u32) -> Result<Self, BenchError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|error| BenchError::io("cannot create an epoll descriptor")(error.into()))?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)
            .map_err(|error| BenchError::io("cannot create a timer")(error.into()))?;
        let watch = |fd: BorrowedFd<'_>, data| {
            let data = epoll::EventData::new_u64(data);
            epoll::add(&epoll, fd, data, epoll::EventFlags::IN)
                .map_err(|error| BenchError::io("cannot watch a descriptor")(error.into()))
        };
        watch(timer.as_fd(), TIMER)?;
        watch(io::stdin().as_fd(), STDIN)?;
        let clients = plan
            .share(index, options.run.processes)
            .enumerate()
            .map(|(n, role)| Client::new(n, role, plan.publishers_per_channel))
            .collect();
        Ok(Self {
            options,
            epoll,
            timer,
            sockets: Sockets::new(&options.run, index)?,
            clients,
            accounts: Accounts::new(plan.channels),
            due: BinaryHeap::new(),
            stage: Stage::Connecting,
            unconnected: 0,
            connecting: 0,
            connected: Connected {
                began: now(),
                ..Connected::default()
            },
            window: Window::default(),
            processor_at_start: 0,
            stdin: Vec::new(),
            padding: "x".repeat(options.run.payload_bytes),
            scratch: Vec::new(),
        })
    }

    fn arm_timer(&self) -> Result<(), BenchError> {
        let at = self
            .due
            .peek()
            .map_or(now() + SECOND, |Reverse((at, _))| *at);
        let spec = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            // Zero would switch it off.
            it_value: timespec(at.max(1)),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)
            .map_err(|error| BenchError::io("cannot set a timer")(error.into()))?;
        Ok(())
    }

    fn connect_more(&mut self) -> Result<(), BenchError> {
        while self.connecting < self.options.run.connecting_max
            && self.unconnected < self.clients.len()
        {
            let index = self.unconnected;
            self.unconnected += 1;
            self.connecting += 1;
            self.connect(index)?;
        }
        Ok(())
    }

    fn connect(&mut self, index: usize) -> Result<(), BenchError> {
        self.sockets.connect(
            &self.epoll,
            index,
            &mut self.clients[index],
            self.options.run_id(),
        )
    }

    fn on_socket(
        &mut self,
        index: usize,
        flags: epoll::EventFlags,
        buffer: &mut [u8],
    ) -> Result<(), BenchError> {
        let was_ready = self.clients[index].is_ready();
        if flags.contains(epoll::EventFlags::OUT) {
            self.sockets
                .flush(&self.epoll, index, &mut self.clients[index]);
        }
        let mut closed = None;
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
        {
            closed = self.read(index, buffer);
        }
        let is_ready = self.clients[index].is_ready();
        if let Some(code) = closed {
            self.on_closed(index, code);
        } else if is_ready && !was_ready {
            self.on_ready(index);
        }
        self.connect_more()
    }

    /// Reads until the socket is empty; the close code, if that was its end.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Option<u16> {
        let mut closed = None;
        loop {
            let client = &mut self.clients[index];
            let read = client.read(buffer);
            let arrived = now();
            let (accounts, window) = (&mut self.accounts, self.window);
            let len = match read {
                Ok(0) => return closed.or(Some(1006)),
                Ok(len) => {
                    client.last_heard = arrived;
                    len
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(_) => return closed.or(Some(1006)),
            };
            client.receive(&mut buffer[..len], |client, event| match event {
                Event::Ready => {}
                Event::Closed(code) => closed = Some(code),
                Event::Other => accounts.unexpected += 1,
                Event::Answer { rid, is_error } => {
                    let publisher = client.publisher.as_mut();
                    match publisher.and_then(|p| p.answer(rid, is_error)) {
                        Some(sequence) => {
                            let intended = client.publisher.as_ref();
                            let intended = intended.and_then(|p| p.intended(sequence));
                            accounts.answered(intended, arrived, window);
                        }
                        None => accounts.unexpected += 1,
                    }
                }
                Event::Delivery(packet) => match Stamp::find(packet) {
                    Some(stamp) => accounts.deliver(client, stamp, arrived, window),
                    None => accounts.unexpected += 1,
                },
            });
            if closed.is_some() || len < buffer.len() {
                break;
            }
        }
        self.sockets
            .flush(&self.epoll, index, &mut self.clients[index]);
        closed
    }

    fn on_ready(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.was_ready {
            client.tally.come_back(now());
            self.accounts.reconnected += 1;
            self.accounts.last_reconnect = Some(now());
        } else {
            client.was_ready = true;
            self.connecting -= 1;
            self.connected.ready += 1;
            self.connected.ended = now();
        }
    }

    fn on_closed(&mut self, index: usize, code: u16) {
        let client = &mut self.clients[index];
        client.drop_socket();
        *self.accounts.closed.entry(code).or_default() += 1;
        let may_return = client.was_ready;
        if may_return {
            // A server that hung was gone before it was seen to be.
            client.tally.leave(client.last_heard);
        }
        if !client.was_ready {
            self.connecting -= 1;
            self.connected.failed += 1;
            self.connected.ended = now();
        }
        if let Some(pause) = self.options.run.reconnect.filter(|_| may_return) {
            // Spread by the index: no two runs need to differ.
            let spread = (index * 7919 % 1000) as f64 / 1000.0;
            let at = now() + micros(pause * (1.0 + spread));
            self.due.push(Reverse((at, Due::Reconnect(index))));
        }
    }

    fn on_time(&mut self) -> Result<(), BenchError> {
        while let Some(Reverse((at, due))) = self.due.peek().copied() {
            if at > now() {
                break;
            }
            self.due.pop();
            match due {
                Due::Publish(index) => self.publish(index, at),
                Due::Reconnect(index) => self.connect(index)?,
                Due::WindowBegins => self.processor_at_start = procfs::own_processor_us(),
                Due::WindowEnds => {
                    self.accounts.processor_us =
                        procfs::own_processor_us().saturating_sub(self.processor_at_start);
                }
                Due::Stop if matches!(self.stage, Stage::Publishing) => {
                    self.stage = Stage::Answering {
                        until: now() + ANSWER_TIMEOUT,
                    }
                }
                Due::Stop | Due::LookAgain => {}
            }
        }
        Ok(())
    }

    fn publish(&mut self, index: usize, at: Micros) {
        if !matches!(self.stage, Stage::Publishing) {
            return;
        }
        let client = &mut self.clients[index];
        let publisher = client.publisher.as_mut().expect("only publishers are due");
        self.due
            .push(Reverse((publisher.after(at), Due::Publish(index))));
        if !client.protocol_is_ready {
            publisher.skip();
            return;
        }
        let (sequence, cid) = publisher.send(at);
        let stamp = Stamp {
            channel: client.channel,
            publisher: publisher.schedule.publisher,
            sequence,
            intended: at,
        };
        let text = &mut self.scratch;
        text.clear();
        let channel = channel_name(self.options.run_id(), client.channel);
        text.extend_from_slice(br##"{"event":"#publish","data":{"channel":""##);
        text.extend_from_slice(channel.as_bytes());
        text.extend_from_slice(br#"","data":"#);
        stamp.write(&self.padding, text);
        if self.options.run.without_acks {
            publisher.answer(cid, false);
            text.extend_from_slice(b"}}");
        } else {
            write!(text, r#"}},"cid":{cid}}}"#).expect("a vector takes every byte");
        }
        client.send(text);
        self.sockets.flush(&self.epoll, index, client);
        if self.window.contains(at) {
            self.accounts.sent_late(now().saturating_sub(at));
        }
    }

    /// Goes to the next stage when the present one is through.
    fn advance(&mut self) -> Result<(), BenchError> {
        match &self.stage {
            Stage::Connecting if self.unconnected == self.clients.len() && self.connecting == 0 => {
                self.stage = Stage::Waiting;
                tell(&ChildMessage::Connected(std::mem::take(
                    &mut self.connected,
                )))
            }
            Stage::Answering { until } => {
                let answered = |client: &Client| {
                    client
                        .publisher
                        .as_ref()
                        .is_none_or(|publisher| publisher.is_answered())
                };
                if now() < *until && !self.clients.iter().all(answered) {
                    self.look_again();
                    return Ok(());
                }
                self.stage = Stage::Reporting;
                tell(&ChildMessage::Published(accounts::published(&self.clients)))
            }
            Stage::Settling { sent, until } => {
                let complete = |client: &Client| {
                    !client.subscribes
                        || !client.was_ready
                        || client.tally.is_complete(&sent[client.channel as usize])
                };
                if now() < *until && !self.clients.iter().all(complete) {
                    self.look_again();
                    return Ok(());
                }
                let outcome = self.accounts.outcome(&self.clients, sent);
                self.stage = Stage::Done;
                tell(&ChildMessage::Outcome(Box::new(outcome)))
            }
            Stage::Connecting
            | Stage::Waiting
            | Stage::Publishing
            | Stage::Reporting
            | Stage::Done => Ok(()),
        }
    }

    fn look_again(&mut self) {
        let at = now() + SETTLE_INTERVAL;
        if !self
            .due
            .iter()
            .any(|Reverse((_, due))| *due == Due::LookAgain)
        {
            self.due.push(Reverse((at, Due::LookAgain)));
        }
    }

    fn read_parent(&mut self) -> Result<(), BenchError> {
        let mut chunk = [0; 64 << 10];
        match rustix::io::read(io::stdin(), &mut chunk) {
            Ok(0) => {
                self.stage = Stage::Done;
                return Ok(());
            }
            Ok(len) => self.stdin.extend_from_slice(&chunk[..len]),
            Err(error) => return Err(BenchError::io("cannot read from the parent")(error.into())),
        }
        while let Some(end) = self.stdin.iter().position(|byte| *byte == b'\n') {
            let line: Vec<_> = self.stdin.drain(..=end).collect();
            let message = serde_json::from_slice(&line)
                .map_err(|error| BenchError::Message(error.to_string()))?;
            self.obey(message);
        }
        Ok(())
    }

    fn obey(&mut self, message: ParentMessage) {
        match message {
            ParentMessage::Start { at, window, end } => {
                self.window = window;
                self.stage = Stage::Publishing;
                for (index, client) in self.clients.iter().enumerate() {
                    if let Some(publisher) = &client.publisher {
                        let first = at + publisher.schedule.phase;
                        self.due.push(Reverse((first, Due::Publish(index))));
                    }
                }
                self.due.push(Reverse((window.from, Due::WindowBegins)));
                self.due.push(Reverse((window.to, Due::WindowEnds)));
                self.due.push(Reverse((end, Due::Stop)));
            }
            ParentMessage::Stop { at } => {
                self.window.to = at.min(self.window.to);
                self.due.push(Reverse((at, Due::WindowEnds)));
                self.due.push(Reverse((at, Due::Stop)));
            }
            ParentMessage::Settle { sent, until } => self.stage = Stage::Settling { sent, until },
        }
    }
}

fn tell(message: &ChildMessage) -> Result<(), BenchError> {
    let mut line =
        serde_json::to_vec(message).map_err(|error| BenchError::Message(error.to_string()))?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(&line)
        .and_then(|()| stdout.flush())
        .map_err(BenchError::io("cannot write to the parent"))
}
