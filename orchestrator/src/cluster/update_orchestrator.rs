//! The last step of an update: the orchestrator executes the new program in its
//! own process.

use std::{io, sync::Arc};

use muster_proto::control as pb;
use muster_wire::Millis;
use tracing::{error, info};

use super::Cluster;
use crate::{
    program::Program,
    reexec::{self, Kept},
    supervisor::Phase,
};

impl Cluster {
    /// Ends the update by executing the new program here. Comes back only when
    /// that is not possible; then this one goes on.
    pub(super) fn update_orchestrator(&mut self, now: Millis) {
        let (Some(program), Some(kept)) = (self.following_program(), self.settings.kept.clone())
        else {
            self.end_following(now, Ok(()));
            return;
        };
        if let Err(why) = reexec::check(program.executable(), &self.settings.runtime_dir) {
            self.orchestrator_stays(now, &why);
            return;
        }
        info!(program = %program.path().display(), "Executing the program anew, in place.");
        let before = Arc::clone(self.fleet.program());
        self.fleet.set_program(Arc::clone(&program));
        let mut done = self.update_status(now);
        done.state = "done".into();
        (done.slot, done.step, done.phase) = (0, String::new(), String::new());
        if let Some(following) = &mut done.following {
            following.orchestrator_done = true;
        }
        let failed = self.execute(&program, &kept, done);
        self.fleet.set_program(before);
        self.is_to_be_renewed = true;
        self.orchestrator_stays(now, &failed.to_string());
    }

    /// Executes a program here that then knows this of the last update. Comes back
    /// only when that is not possible.
    fn execute(
        &mut self,
        program: &Program,
        kept: &Kept,
        last_update: pb::UpdateStatusResponse,
    ) -> io::Error {
        let before = self.last_update.replace(last_update);
        self.save();
        self.service.reloading();
        self.hide_table();
        self.spawner.sink.console.finish();
        let failed = reexec::exec(program.executable_here(), kept);
        self.last_update = before;
        self.service.reloaded();
        failed
    }

    /// A process can fail to execute a program once, see [`reexec::exec`]. One that
    /// has executes its own when there is nothing else to do, so that it can again.
    pub(super) fn renew(&mut self, now: Millis) {
        if !self.is_to_be_renewed || self.may_update().is_err() {
            return;
        }
        self.is_to_be_renewed = false;
        let Some(kept) = self.settings.kept.clone() else {
            return;
        };
        info!("Executing this program anew: an attempt to execute another one has failed.");
        let last_update = self.update_status(now);
        let failed = self.execute(&Program::own(), &kept, last_update);
        error!(
            error = %failed,
            "The orchestrator cannot execute its own program: whoever stops reading from it may \
             end it."
        );
    }

    fn orchestrator_stays(&mut self, now: Millis, why: &str) {
        error!(why, "The orchestrator goes on with the earlier program.");
        let why = format!(
            "the orchestrator cannot execute the new program and goes on with the earlier one: \
             {why}"
        );
        self.take_brokers_back(now, why);
    }

    /// Whether nodes that this process had before it executed its program anew
    /// have not joined again: then the update is not over for operators.
    pub(super) fn await_rejoin(&mut self, now: Millis) {
        let ready = |phase| matches!(phase, Phase::Ready { .. });
        let is_whole = || {
            let mut roles = super::ROLES.iter();
            roles.all(|role| self.fleet.all(*role, ready))
        };
        if self
            .rejoin_until
            .is_some_and(|until| until <= now || is_whole())
        {
            self.rejoin_until = None;
        }
    }

    /// The end of an update that an earlier orchestrator, or this process as
    /// that, has made.
    pub(super) fn last_update(&self) -> pb::UpdateStatusResponse {
        let Some(mut update) = self.last_update.clone() else {
            return pb::UpdateStatusResponse {
                state: "none".into(),
                ..pb::UpdateStatusResponse::default()
            };
        };
        if self.rejoin_until.is_some() {
            update.state = "running".into();
        }
        update
    }
}
