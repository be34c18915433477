//! Scenarios as data: how large the cluster is, how tight its limits are, and
//! how often what happens.

use std::{ops::Range, time::Duration};

use muster_broker::simulation::BrokenRules;
use muster_worker::simulation::BrokenRules as BrokenWorker;

/// One kind of run; a seed makes it one run.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) workers: usize,
    /// Slots for brokers: 1, 2, 3 …
    pub(crate) brokers: u32,
    pub(crate) clients: usize,
    pub(crate) channels: usize,
    /// Events until everything is to work again.
    pub(crate) steps: usize,
    /// Longest time between two events, in milliseconds.
    pub(crate) step_ms: u64,
    /// What a broker has appended outlives it.
    pub(crate) durable: bool,
    pub(crate) window_bytes: usize,
    pub(crate) credit_bytes: u64,
    /// Batches on their way on one link, in each direction.
    pub(crate) path_batches: usize,
    pub(crate) publish_timeout: Duration,
    pub(crate) tail_bytes_max: usize,
    pub(crate) tail_age: Duration,
    pub(crate) key_window: Duration,
    /// Some subscribers want positions, and go on from them.
    pub(crate) has_followers: bool,
    /// Publications that every channel keeps as its history, which clients read.
    pub(crate) history: Option<u64>,
    /// Bytes of data of one read, but for one publication.
    pub(crate) history_bytes_max: u64,
    /// Bytes of one publication's data.
    pub(crate) data_bytes: Range<usize>,
    /// Publications are missed because the tail is short or logs are lost; then
    /// they must be counted.
    pub(crate) may_have_holes: bool,
    /// Publications are refused because a journal cannot be written.
    pub(crate) may_refuse: bool,
    /// Publications are sent again so late that nobody remembers their keys.
    pub(crate) may_expire: bool,
    /// A client that subscribes and publishes in one go hears its own
    /// publication. Not so when a link breaks between the owner's taking both
    /// and its confirmation's arrival: the worker then has no position to
    /// resume from.
    pub(crate) hears_own: bool,
    pub(crate) weights: Weights,
    pub(crate) broken: Broken,
}

/// How often what happens, relative to each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weights {
    /// A client connects or says something.
    pub(crate) client: u32,
    /// A message of a client reaches its worker.
    pub(crate) uplink: u32,
    /// A client goes away.
    pub(crate) leave: u32,
    pub(crate) worker_sends: u32,
    pub(crate) broker_receives: u32,
    pub(crate) broker_sends: u32,
    pub(crate) worker_receives: u32,
    pub(crate) credit: u32,
    /// A read gets to its broker, or its answer back.
    pub(crate) read: u32,
    /// A worker calls a broker.
    pub(crate) connect: u32,
    /// A link breaks.
    pub(crate) cut: u32,
    /// One end of a broken link notices.
    pub(crate) notice: u32,
    /// A node gets a view, now and then an old one, or one twice.
    pub(crate) hear_view: u32,
    /// Other brokers are in the view.
    pub(crate) change_view: u32,
    pub(crate) kill: u32,
    pub(crate) restart: u32,
    /// A worker dies, with its clients' connections, and is back at once.
    pub(crate) restart_worker: u32,
    /// Every disk is about to be full, or has room again.
    pub(crate) disks: u32,
    /// The machine goes down.
    pub(crate) lose_power: u32,
}

/// Rules that are broken on purpose.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Broken {
    pub(crate) broker: BrokenRules,
    pub(crate) worker: BrokenWorker,
}

const NO_FAULTS: Weights = Weights {
    client: 30,
    uplink: 30,
    leave: 0,
    worker_sends: 25,
    broker_receives: 25,
    broker_sends: 25,
    worker_receives: 25,
    credit: 10,
    read: 0,
    connect: 10,
    cut: 0,
    notice: 8,
    hear_view: 8,
    change_view: 0,
    kill: 0,
    restart: 0,
    restart_worker: 0,
    disks: 0,
    lose_power: 0,
};

/// Every scenario there is.
pub(crate) fn all() -> Vec<Scenario> {
    vec![
        calm(),
        links(),
        short_window(),
        tight(),
        moves(),
        restarts(),
        restarts_and_moves(),
        late_views(),
        full_disks(),
        short_journals(),
        power(),
        lost_logs(),
        timeouts(),
        short_tail(),
        histories(),
        everything(),
    ]
}

const CALM: Scenario = Scenario {
    name: "calm",
    workers: 2,
    brokers: 2,
    clients: 5,
    channels: 4,
    steps: 500,
    step_ms: 5,
    durable: true,
    window_bytes: 1 << 20,
    credit_bytes: 1 << 20,
    path_batches: 8,
    publish_timeout: Duration::from_secs(5),
    tail_bytes_max: 1 << 20,
    tail_age: Duration::from_secs(600),
    key_window: Duration::from_secs(60),
    has_followers: false,
    history: None,
    history_bytes_max: 300,
    data_bytes: 10..60,
    may_have_holes: false,
    may_refuse: false,
    may_expire: false,
    hears_own: true,
    weights: NO_FAULTS,
    broken: Broken {
        broker: BrokenRules::NONE,
        worker: BrokenWorker::NONE,
    },
};

/// Nothing goes wrong; only everything takes its time.
pub(crate) fn calm() -> Scenario {
    CALM
}

/// Links break at any message.
pub(crate) fn links() -> Scenario {
    Scenario {
        name: "links",
        has_followers: true,
        hears_own: false,
        weights: Weights {
            read: 20,
            leave: 1,
            cut: 4,
            ..NO_FAULTS
        },
        ..CALM
    }
}

/// Links break for so long that keys are forgotten before publications are sent
/// again. The window is longer than anything is on its way.
pub(crate) fn short_window() -> Scenario {
    Scenario {
        name: "short-window",
        hears_own: false,
        may_expire: true,
        steps: 700,
        key_window: Duration::from_millis(800),
        weights: Weights {
            client: 10,
            cut: 2,
            connect: 1,
            ..NO_FAULTS
        },
        ..CALM
    }
}

/// Windows, credit and paths that are full most of the time.
pub(crate) fn tight() -> Scenario {
    Scenario {
        name: "tight",
        hears_own: false,
        window_bytes: 700,
        credit_bytes: 120,
        path_batches: 1,
        data_bytes: 10..120,
        weights: Weights {
            client: 60,
            leave: 1,
            credit: 5,
            cut: 1,
            ..NO_FAULTS
        },
        ..CALM
    }
}

/// Shards move between brokers that live, and every node hears of it when it
/// does.
pub(crate) fn moves() -> Scenario {
    Scenario {
        name: "moves",
        has_followers: true,
        hears_own: false,
        brokers: 3,
        weights: Weights {
            read: 20,
            leave: 1,
            cut: 1,
            change_view: 4,
            ..NO_FAULTS
        },
        ..CALM
    }
}

/// Brokers die and come back with their journal.
pub(crate) fn restarts() -> Scenario {
    Scenario {
        name: "restarts",
        has_followers: true,
        hears_own: false,
        weights: Weights {
            read: 20,
            leave: 1,
            cut: 1,
            kill: 3,
            restart: 12,
            ..NO_FAULTS
        },
        ..CALM
    }
}

/// Disks are full again and again, and brokers die, too.
pub(crate) fn full_disks() -> Scenario {
    Scenario {
        name: "full-disks",
        may_refuse: true,
        // A channel that was begun while a disk was full has another generation
        // after the next start, although nothing was published on it.
        may_have_holes: true,
        weights: Weights {
            read: 20,
            leave: 1,
            cut: 1,
            kill: 1,
            restart: 12,
            disks: 6,
            ..NO_FAULTS
        },
        ..restarts()
    }
}

/// Brokers die and come back, and their journals let go of most of what they
/// had.
pub(crate) fn short_journals() -> Scenario {
    Scenario {
        name: "short-journals",
        // Long enough for brokers to let go of what is old.
        step_ms: 20,
        tail_bytes_max: 1500,
        tail_age: Duration::from_millis(400),
        may_have_holes: true,
        ..restarts()
    }
}

/// The machine goes down, and what its disk had not written is lost.
pub(crate) fn power() -> Scenario {
    Scenario {
        name: "power",
        may_have_holes: true,
        weights: Weights {
            kill: 1,
            lose_power: 2,
            ..restarts().weights
        },
        ..restarts()
    }
}

/// Shards move between brokers that hear of it late, and die.
pub(crate) fn restarts_and_moves() -> Scenario {
    Scenario {
        name: "restarts-and-moves",
        brokers: 3,
        weights: Weights {
            read: 20,
            leave: 1,
            cut: 1,
            kill: 2,
            restart: 12,
            change_view: 4,
            hear_view: 4,
            ..NO_FAULTS
        },
        ..restarts()
    }
}

/// Shards move so often that nodes are some views behind.
pub(crate) fn late_views() -> Scenario {
    Scenario {
        name: "late-views",
        workers: 3,
        brokers: 3,
        channels: 2,
        steps: 900,
        weights: Weights {
            read: 20,
            change_view: 4,
            hear_view: 12,
            connect: 40,
            ..NO_FAULTS
        },
        ..restarts()
    }
}

/// Brokers die and come back with nothing.
pub(crate) fn lost_logs() -> Scenario {
    Scenario {
        name: "lost-logs",
        durable: false,
        may_have_holes: true,
        ..restarts()
    }
}

/// Brokers are away for longer than publications wait.
pub(crate) fn timeouts() -> Scenario {
    Scenario {
        name: "timeouts",
        hears_own: false,
        publish_timeout: Duration::from_millis(300),
        window_bytes: 700,
        data_bytes: 10..120,
        weights: Weights {
            leave: 1,
            cut: 3,
            notice: 3,
            connect: 1,
            kill: 2,
            restart: 3,
            ..NO_FAULTS
        },
        ..CALM
    }
}

/// Tails end at once, and what has left them is read while brokers die and
/// shards move.
pub(crate) fn histories() -> Scenario {
    Scenario {
        name: "histories",
        history: Some(8),
        // Long enough for brokers to let go of what is old.
        step_ms: 20,
        tail_age: Duration::from_millis(100),
        // Links that fall behind miss something.
        may_have_holes: true,
        ..restarts_and_moves()
    }
}

/// So little is retained that links which fall behind miss something.
pub(crate) fn short_tail() -> Scenario {
    Scenario {
        name: "short-tail",
        has_followers: true,
        hears_own: false,
        tail_bytes_max: 500,
        credit_bytes: 120,
        path_batches: 1,
        may_have_holes: true,
        weights: Weights {
            read: 20,
            leave: 1,
            cut: 2,
            credit: 3,
            ..NO_FAULTS
        },
        ..CALM
    }
}

/// All of it at once, on a larger cluster.
pub(crate) fn everything() -> Scenario {
    Scenario {
        name: "everything",
        history: Some(20),
        has_followers: true,
        hears_own: false,
        workers: 3,
        brokers: 3,
        clients: 9,
        channels: 6,
        steps: 900,
        step_ms: 4,
        window_bytes: 1500,
        credit_bytes: 300,
        path_batches: 2,
        publish_timeout: Duration::from_millis(1500),
        data_bytes: 10..200,
        weights: Weights {
            read: 20,
            leave: 2,
            cut: 3,
            change_view: 2,
            kill: 1,
            restart: 8,
            restart_worker: 1,
            ..NO_FAULTS
        },
        ..CALM
    }
}
