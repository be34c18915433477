//! Takes over another configuration, at once or with an update.

use std::collections::BTreeSet;

use muster_daemon::{Config, exit::chain, telemetry};
use muster_proto::control::{Query, ReloadConfig, node_command::Command, query};
use tracing::{error, info, warn};

use super::{Cluster, Settings};
use crate::{
    node::{NodeId, Role},
    reload::{self, Reload, ReloadError},
};

impl Cluster {
    /// Reads the configuration again, and takes over what needs no new process;
    /// workers have yet to be told. An update takes the rest.
    ///
    /// # Errors
    ///
    /// When `up` would refuse it; nothing has changed then.
    pub(super) fn reload(&mut self) -> Result<Reload, ReloadError> {
        let Settings { source, config, .. } = &self.settings;
        let wanted = source.wanted(config, self.state_file.dir())?;
        let reload = reload::in_place(config, &wanted)?;
        self.take_config(reload.config.clone())?;
        self.has_reloaded = true;
        log(&reload);
        Ok(reload)
    }

    /// The same for SIGHUP, with nobody to answer.
    pub(super) fn reload_for_nobody(&mut self) {
        self.service.reloading();
        match self.reload() {
            Ok(_) => self.tell_workers_config(),
            Err(error) => error!(error = chain(&error), "The configuration stays as it is."),
        }
        self.service.reloaded();
    }

    /// Reads the configuration again for the processes that an update starts.
    ///
    /// # Errors
    ///
    /// When `up` would refuse it, or something in it takes `down` and `up`;
    /// nothing has changed then.
    pub(super) fn reload_for_update(&mut self) -> Result<(), ReloadError> {
        self.config_before = None;
        let Settings { source, config, .. } = &self.settings;
        let wanted = source.wanted(config, self.state_file.dir())?;
        reload::for_update(config, &wanted)?;
        let keys = config.differences(&wanted);
        if keys.is_empty() {
            return Ok(());
        }
        info!(
            keys = keys.join(", "),
            "The new processes get another configuration."
        );
        let before = config.clone();
        self.take_config(wanted)?;
        self.config_before = Some(before);
        Ok(())
    }

    /// The update has come to nothing.
    pub(super) fn restore_config(&mut self) {
        let Some(before) = self.config_before.take() else {
            return;
        };
        if let Err(error) = self.take_config(before) {
            warn!(
                error = chain(&error),
                "The earlier configuration cannot be written down again."
            );
        }
        self.tell_workers_config();
    }

    fn tell_workers_config(&mut self) {
        for role in [Role::Worker, Role::Successor] {
            for slot in self.fleet.joined(role) {
                self.tell_config(NodeId { role, slot });
            }
        }
    }

    /// A worker may have missed what the others were told.
    pub(super) fn tell_config(&mut self, node: NodeId) {
        if !self.has_reloaded || !matches!(node.role, Role::Worker | Role::Successor) {
            return;
        }
        let config = self.settings.config.to_toml();
        let request = Some(query::Request::Reload(ReloadConfig { config }));
        // Nobody waits for the answer.
        let id = 0;
        if !self.fleet.send(node, Command::Query(Query { id, request })) {
            self.leave(node);
        }
    }

    /// What the nodes that start from here on get, and what is done here.
    fn take_config(&mut self, config: Config) -> Result<(), ReloadError> {
        let dir = self.state_file.dir();
        dir.write(&dir.config_file(), config.to_toml().as_bytes())?;
        let before = std::mem::replace(&mut self.settings.config, config);
        let config = &self.settings.config;
        self.settings.path.clone_from(&config.listener.path);
        self.settings.shutdown_timeout = config.shutdown.timeout;
        self.settings.publish_timeout = config.link.publish_timeout;
        self.settings.supervision = config.supervision.clone();
        self.settings.update = config.update.clone();
        self.fleet.set_supervision(&config.supervision);
        if before.log.filter != config.log.filter {
            self.set_log_filter();
        }
        Ok(())
    }

    fn set_log_filter(&mut self) {
        if let Err(error) = telemetry::set_filter(&self.settings.config.log.filter) {
            warn!(error = chain(&error), "The log filter stays as it is.");
            return;
        }
        let nodes: BTreeSet<NodeId> = self.fleet.nodes().map(|(id, _)| id).collect();
        for id in nodes {
            if self.fleet.joined(id.role).contains(&id.slot) {
                self.tell_log_filter(id);
            }
        }
    }
}

fn log(reload: &Reload) {
    let Reload {
        changed,
        needs_update,
        fixed,
        ..
    } = reload;
    info!(
        changed = changed.join(", "),
        "The configuration was read again."
    );
    if !needs_update.is_empty() {
        warn!(
            keys = needs_update.join(", "),
            "What was changed there takes new processes: see `update`."
        );
    }
    if !fixed.is_empty() {
        warn!(
            keys = fixed.join(", "),
            "What was changed there takes effect with `down` and `up`."
        );
    }
}
