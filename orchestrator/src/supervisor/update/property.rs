//! A world in which anything may happen, in any order, while workers are
//! replaced.

use proptest::prelude::*;

use super::*;

const NOW: Millis = Millis(1_000);
const TIMES: Times = Times {
    starting: Duration::from_secs(10),
    leaving: Duration::from_secs(5),
};

fn plan(canary: u32, parallel: u32) -> Plan {
    Plan {
        canary,
        hold: Duration::from_secs(30),
        parallel,
    }
}

fn failed(has_moved: bool) -> Handed {
    Handed::Failed {
        reason: "no room".to_owned(),
        has_moved,
    }
}

/// A process in the world that is made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    is_new: bool,
    is_ready: bool,
    /// What its slot is filled from when it ends.
    restarts_new: bool,
    /// It was told to end.
    is_leaving: bool,
}

#[derive(Debug, Clone)]
struct Slot {
    worker: Process,
    successor: Option<Process>,
    exit: Option<String>,
    handed: Handed,
    /// An order is under way; true: from the successor.
    order: Option<bool>,
    is_heard: bool,
}

impl Process {
    fn started(is_new: bool) -> Self {
        Self {
            is_new,
            is_ready: false,
            restarts_new: is_new,
            is_leaving: false,
        }
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            worker: Process {
                is_ready: true,
                ..Process::started(false)
            },
            successor: None,
            exit: None,
            handed: Handed::NotYet,
            order: None,
            is_heard: false,
        }
    }

    fn facts(&self) -> SlotFacts {
        SlotFacts {
            is_worker_ready: self.worker.is_ready,
            successor: match self.successor {
                None => Successor::None(self.exit.clone()),
                Some(Process { is_ready: true, .. }) => Successor::Ready,
                Some(_) => Successor::Starting,
            },
            handed_over: self.handed.clone(),
            is_heard: self.is_heard,
            is_new: self.worker.is_new,
        }
    }

    fn successor_dies(&mut self) {
        if self.successor.take().is_some() {
            self.exit = Some("signal 9".into());
            self.order_ends(failed(true));
        }
    }

    fn worker_dies(&mut self) {
        self.order_ends(failed(true));
        match self.successor {
            Some(successor) if successor.is_ready => {
                self.worker = successor;
                self.successor = None;
            }
            Some(_) | None => self.worker = Process::started(self.worker.restarts_new),
        }
    }

    fn order_ends(&mut self, handed: Handed) {
        if let Some(from_successor) = self.order.take() {
            let is_through = handed == Handed::All;
            self.handed = handed;
            self.is_heard = false;
            if is_through
                && from_successor
                && let Some(successor) = &mut self.successor
            {
                successor.is_leaving = true;
            }
        }
    }

    fn order(&mut self, from_successor: bool) {
        let is_possible = self.successor.is_some();
        self.handed = if is_possible {
            Handed::NotYet
        } else {
            failed(false)
        };
        self.order = is_possible.then_some(from_successor);
    }

    fn happens(&mut self, event: u8) {
        match event {
            0 => {
                if let Some(successor) = &mut self.successor {
                    successor.is_ready = true;
                }
            }
            1 => self.worker.is_ready = true,
            2 => self.successor_dies(),
            3 => self.worker_dies(),
            4 => self.order_ends(Handed::All),
            5 => self.order_ends(failed(true)),
            6 => self.order_ends(failed(false)),
            _ => self.is_heard = true,
        }
    }

    /// Everything goes as it should for a while.
    fn goes_well(&mut self) {
        self.happens(0);
        self.happens(1);
        if self.successor.is_some_and(|one| one.is_leaving) {
            self.successor_dies();
        }
        if self.worker.is_leaving {
            self.worker_dies();
        }
        self.order_ends(Handed::All);
        self.is_heard = true;
    }
}

fn of(slots: &mut BTreeMap<u32, Slot>, number: u32) -> &mut Slot {
    slots.get_mut(&number).unwrap()
}

struct World {
    update: Update,
    slots: BTreeMap<u32, Slot>,
    now: Millis,
    checked: Option<Result<(), String>>,
    fault: Option<String>,
    done: Option<Result<(), String>>,
}

impl World {
    fn new(plan: Plan, slots: u32) -> Self {
        Self {
            update: Update::new(plan, 1..=slots),
            slots: (1..=slots).map(|slot| (slot, Slot::new())).collect(),
            now: NOW,
            checked: None,
            fault: None,
            done: None,
        }
    }

    fn run(&mut self) {
        for _ in 0..1_000 {
            let slots = &self.slots;
            let slot = |slot: u32| slots[&slot].facts();
            let facts = Facts {
                checked: self.checked.clone(),
                fault: self.fault.take(),
                slot: &slot,
            };
            let next = self.update.turn(self.now, &facts, TIMES);
            if next == Next::Nothing {
                return;
            }
            self.act(next);
        }
        panic!("it does not come to rest: {:?}", self.update);
    }

    fn act(&mut self, next: Next) {
        if next == Next::Nothing {
            return;
        }
        assert_eq!(self.done, None, "{next:?} after the end");
        let is_new = !self.update.is_going_back();
        let slots = &mut self.slots;
        match next {
            Next::Nothing => {}
            Next::Start(number) => {
                let slot = of(slots, number);
                assert_eq!(slot.successor, None, "a second successor of {number}");
                (slot.exit, slot.handed, slot.is_heard) = (None, Handed::NotYet, false);
                slot.order = None;
                slot.successor = Some(Process::started(is_new));
            }
            Next::HandOver(number) => of(slots, number).order(false),
            Next::HandBack(number) => of(slots, number).order(true),
            Next::CallOff(number) => of(slots, number).order_ends(failed(true)),
            Next::Leave(number) => of(slots, number).worker.is_leaving = true,
            Next::EndWorker(number) => of(slots, number).worker_dies(),
            Next::EndSuccessor { slot: number, .. } => of(slots, number).successor_dies(),
            Next::GoBack(numbers) => {
                for number in numbers {
                    of(slots, number).worker.restarts_new = false;
                }
            }
            Next::Done(result) => self.done = Some(result),
        }
    }

    fn happens(&mut self, (event, number): (u8, u32)) {
        match event {
            0..=7 => {
                if let Some(slot) = self.slots.get_mut(&number) {
                    slot.happens(event);
                }
            }
            8 => self.now = self.now + Duration::from_secs(1),
            9 => self.now = self.now + Duration::from_secs(31),
            10 => self.checked = Some(Ok(())),
            11 if !self.update.replaced().is_empty() => self.fault = Some("it is no good".into()),
            12 => {
                let next = self.update.give_up("an operator's wish".into());
                self.act(next);
            }
            _ => {
                if let Some(slot) = self.slots.get_mut(&number) {
                    slot.goes_well();
                }
            }
        }
        self.run();
    }

    /// From here on nothing fails.
    fn end(&mut self) {
        self.checked.get_or_insert(Ok(()));
        for _ in 0..500 {
            self.run();
            if self.done.is_some() {
                return;
            }
            self.now = self.now + Duration::from_secs(1);
            for slot in self.slots.values_mut() {
                slot.goes_well();
            }
        }
        panic!("it does not end: {:?}", self.update);
    }
}

impl World {
    /// Every slot has one process and no successor: of the new program, or of the
    /// earlier one but for what is said to be stuck.
    fn is_at_rest(&self, is_new: bool) -> Result<(), TestCaseError> {
        for (number, slot) in &self.slots {
            prop_assert_eq!(slot.successor, None, "{}", number);
            if !self.update.stuck().contains_key(number) {
                prop_assert_eq!(slot.worker.is_new, is_new, "{} {:?}", number, self.update);
            }
        }
        Ok(())
    }
}

fn script() -> impl Strategy<Value = Vec<(u8, u32)>> {
    prop::collection::vec((0_u8..30, 1_u32..5), 0..120)
}

proptest! {
    /// Whatever happens in which order: the update ends, with one program in each
    /// slot; and so it does once more if what comes after it has it taken back.
    #[test]
    fn every_update_ends_with_one_program_in_each_slot(
        canary in 0_u32..3,
        parallel in 1_u32..4,
        slots in 1_u32..5,
        events in script(),
        later in script(),
    ) {
        let mut world = World::new(plan(canary, parallel), slots);
        for event in events {
            world.happens(event);
        }
        world.end();
        let is_new = world.done == Some(Ok(()));
        world.is_at_rest(is_new)?;
        if !is_new {
            return Ok(());
        }
        let mut replaced = world.update.replaced().to_vec();
        replaced.sort_unstable();
        prop_assert_eq!(replaced, (1..=slots).collect::<Vec<_>>());
        let next = world.update.take_back("a broker does not start".into());
        world.done = None;
        world.act(next);
        for event in later {
            world.happens(event);
        }
        world.end();
        prop_assert_eq!(&world.done, &Some(Err("a broker does not start".into())));
        world.is_at_rest(false)?;
    }
}
