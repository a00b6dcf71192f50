//! Reload: the configuration is read again from where it came, and what differs is put into force while packets flow; all
//! of it or nothing.
//!
//! Everything is validated first. Then each part of the daemon that is to change readies its change ([`Plan::ready`] has
//! them in order), and only when all are ready are the changes made.

use std::sync::Arc;

use anyhow::Result;
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard};
use tokio::task::block_in_place;
use tracing::{info, warn};

use super::check::warn_of_plain_text;
use super::interception::Interception;
use super::names::Loaded;
use super::rulebook::Difference;
use super::taps::Taps;
use super::{Parts, notify};
use crate::config::{self, Change, Config, Sources};
use crate::listen::Inherited;
use crate::rules::Rule;
use crate::service::Service;

/// What is reloaded from where, beside the running parts.
pub struct Reloads {
    /// Where the configuration comes from, as at the start.
    pub sources: Sources,
    /// Has the log follow another filter.
    pub set_log_filter: SetLogFilter,
}

/// Takes a filter in the form of [`config::LogConfig::filter`]; fails where the log cannot follow it.
pub type SetLogFilter = Arc<dyn Fn(&str) -> Result<()> + Send + Sync>;

/// The running daemon's configuration, and the way to another.
pub(super) struct Reloader {
    parts: Parts,
    reloads: Reloads,
    /// The configuration in force; held while it changes.
    config: AsyncMutex<Config>,
}

/// Why nothing was changed.
#[derive(Debug, Error)]
pub(super) enum ReloadError {
    /// The configuration cannot be, or not without a restart.
    #[error(transparent)]
    Configuration(#[from] config::Error),
    /// It does not work on this host.
    #[error("{0:#}; nothing was changed")]
    Host(anyhow::Error),
}

impl Reloader {
    pub(super) fn new(parts: Parts, reloads: Reloads, config: Config) -> Self {
        Self {
            parts,
            reloads,
            config: AsyncMutex::new(config),
        }
    }

    /// Puts into force what the sources say by now; tells what that has changed.
    pub(super) async fn reload(&self) -> Result<Vec<Change>, ReloadError> {
        let mut config = self.config.lock().await;
        // systemd takes the time for the reload's beginning (sd_notify(3)); both outcomes end with READY=1.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
        let outcome = self.change(&mut config).await;
        notify(&[NotifyState::Ready]);
        match &outcome {
            Ok(changes) if changes.is_empty() => info!("reloaded: nothing has changed"),
            Ok(changes) => {
                let mut keys: Vec<&str> = changes.iter().map(|it| it.key.as_str()).collect();
                keys.dedup();
                info!(changed = keys.join(", "), "reloaded");
            }
            Err(error) => warn!("not reloaded: {error}"),
        }
        outcome
    }

    /// The configuration in force. Nothing is reloaded while it is held.
    pub(super) async fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().await
    }

    async fn change(&self, config: &mut Config) -> Result<Vec<Change>, ReloadError> {
        let after = block_in_place(|| config.load_again(&self.reloads.sources))?;
        let mut plan = Plan {
            changes: config.changes(&after),
            commits: Vec::new(),
        };
        plan.ready(self, config, &after)
            .await
            .map_err(ReloadError::Host)?;
        for commit in plan.commits {
            commit();
        }
        if !plan.changes.is_empty()
            && let Some(interception) = &self.parts.interception
        {
            interception.review().await;
        }
        if after.dns.half_encrypted() != config.dns.half_encrypted() {
            warn_of_plain_text(&after.dns);
        }
        *config = after;
        Ok(plan.changes)
    }
}

/// What a reload is going to do.
struct Plan {
    /// What is told about it.
    changes: Vec<Change>,
    /// What makes the changes, in order.
    commits: Vec<Box<dyn FnOnce() + Send>>,
}

impl Plan {
    /// Readies the change from `before` to `after`, part by part in the order in which they change.
    ///
    /// A part does here all that can fail, and nothing that anybody would notice; what it hands over makes the change,
    /// which cannot fail, and takes everything back where it is dropped instead. A new part of the daemon has its place
    /// in this list: before the rules, where it answers what they bring. Listeners come last, because a socket that takes
    /// an address over gets its queries from the moment it is bound.
    async fn ready(&mut self, reloader: &Reloader, before: &Config, after: &Config) -> Result<()> {
        let Reloader { parts, reloads, .. } = reloader;
        self.log(reloads, before, after);
        self.names(parts, before, after).await?;
        self.bounds(parts, before, after);
        self.dns(parts, before, after);
        if let Some(interception) = &parts.interception {
            self.rules(interception, after).await?;
            self.tunnels(interception, before, after).await?;
        }
        self.listeners(parts, before, after)
    }

    fn log(&mut self, reloads: &Reloads, before: &Config, after: &Config) {
        if before.log.filter == after.log.filter {
            return;
        }
        let set_filter = Arc::clone(&reloads.set_log_filter);
        let filter = after.log.filter.clone();
        self.then(move || {
            if let Err(error) = set_filter(&filter) {
                warn!("the log keeps its filter: {error:#}");
            }
        });
    }

    fn dns(&mut self, parts: &Parts, before: &Config, after: &Config) {
        if before.dns == after.dns {
            return;
        }
        let (dns, data_plane) = (Arc::clone(&parts.dns), parts.data_plane.clone());
        let config = after.dns.clone();
        self.then(move || {
            let _guard = data_plane.enter();
            dns.apply(&config);
        });
    }

    async fn names(&mut self, parts: &Parts, before: &Config, after: &Config) -> Result<()> {
        if before.names == after.names {
            return Ok(());
        }
        let loaded = block_in_place(|| Loaded::new(&after.names))?;
        let mut names = Arc::clone(&parts.names).lock_owned().await;
        self.then(move || names.use_from_now(loaded));
        Ok(())
    }

    fn listeners(&mut self, parts: &Parts, before: &Config, after: &Config) -> Result<()> {
        if before.listens == after.listens {
            return Ok(());
        }
        let change = {
            let _guard = parts.data_plane.enter();
            // Those that a service manager has passed on stay.
            let listeners = parts.listeners();
            listeners.prepare(&after.listens, Inherited::default())?
        };
        let parts = parts.clone();
        self.then(move || {
            let _guard = parts.data_plane.enter();
            let service: Arc<dyn Service> = Arc::clone(&parts.dns) as Arc<dyn Service>;
            parts.listeners().apply(change, &service);
        });
        Ok(())
    }

    fn bounds(&mut self, parts: &Parts, before: &Config, after: &Config) {
        if before.tcp == after.tcp {
            return;
        }
        let (parts, tcp) = (parts.clone(), after.tcp.clone());
        self.then(move || {
            parts.listeners().bound(tcp.max_connections);
            if let Some(interception) = &parts.interception {
                interception.netstack.set_bounds(&tcp);
            }
        });
    }

    /// Whatever the configuration was before: rules may have been added and removed meanwhile.
    async fn rules(&mut self, parts: &Interception, after: &Config) -> Result<()> {
        let Some(replacement) = parts.rulebook.replace(&after.rules).await? else {
            return Ok(());
        };
        let Difference { gone, new } = replacement.difference();
        let change = |before: Option<&Rule>, after: Option<&Rule>| Change {
            key: "rule".to_owned(),
            before: serde_json::to_value(before).unwrap_or_default(),
            after: serde_json::to_value(after).unwrap_or_default(),
        };
        let gone = gone.iter().map(|rule| change(Some(rule), None));
        let new = new.iter().map(|rule| change(None, Some(rule)));
        self.changes.extend(gone.chain(new));
        self.then(move || replacement.commit());
        Ok(())
    }

    /// Interfaces, routes and the mark. Routing is locked before taps, as everywhere.
    async fn tunnels(
        &mut self,
        parts: &Interception,
        before: &Config,
        after: &Config,
    ) -> Result<()> {
        let mut routing = Arc::clone(&parts.routing).lock_owned().await;
        let config = after.clone();
        if before.interfaces != after.interfaces || before.share != after.share {
            let taps = Arc::clone(&parts.taps).lock_owned().await;
            let retap = Taps::retap(taps, after).await?;
            self.then(move || retap.commit());
        }
        self.then(move || routing.reconfigure(&config));
        Ok(())
    }

    fn then(&mut self, commit: impl FnOnce() + Send + 'static) {
        self.commits.push(Box::new(commit));
    }
}
