//! The task that brings HAProxy to what is wanted, for as long as kvip runs.
//!
//! ```text
//! wants ──► render, haproxy -c, rename ──► change servers over the socket, or reload, or start ──► confirm ──► Status
//!   ▲                                                                                                │
//!   └────────────────── again: at new wants, after a delay ◄── roll back, leave out ◄────────────────┘
//! ```
//!
//! Owns HAProxy's file and unit. The file always says what is wanted before HAProxy does it, so that one that falls comes
//! back with it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::program::ProgramError;
use super::servers::{self, SHOW, Tidying};
use super::service::Service;
use super::status::{State, Status};
use super::trouble::Trouble;
use super::{Config, Paths, Proxy, name, render, taken};
use crate::backoff::Backoff;
use crate::files;
use crate::model::{Finding, Frontend};
use crate::report::beats;
use crate::unit::UnitState;

/// Changes that come within this time are one.
pub const DEBOUNCE: Duration = Duration::from_millis(200);

/// How often a HAProxy that is as wanted is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The first and the longest delay before something that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long HAProxy may take to serve what it was told to.
const TAKING_OVER: Duration = Duration::from_secs(10);

/// More servers than this are changed by a reload, and no more are deleted at one look: each is a conversation of its own.
const MOST_COMMANDS: usize = 100;

const POLL: Duration = Duration::from_millis(50);

/// Starts the task. It ends when the sender of `wants` is gone.
///
/// `None` means that nobody knows yet what is wanted, and changes nothing; a configuration without frontends stops HAProxy.
pub fn spawn<S: Service + 'static>(
    wants: watch::Receiver<Option<Arc<Config>>>,
    paths: Paths,
    service: S,
) -> watch::Receiver<Status> {
    let (status, seen) = watch::channel(Status::default());
    let driver = Driver { service, paths, status, running: None, left_out: BTreeMap::new() };
    tokio::spawn(driver.run(wants));
    seen
}

struct Driver<S> {
    service: S,
    paths: Paths,
    status: watch::Sender<Status>,
    /// What HAProxy runs, where this driver has seen to it.
    running: Option<Config>,
    /// Frontends whose places other programs have, and where these listen.
    left_out: BTreeMap<Frontend, SocketAddr>,
}

impl<S: Service> Driver<S> {
    async fn run(mut self, mut wants: watch::Receiver<Option<Arc<Config>>>) {
        let mut retry = Backoff::new(RETRY);
        loop {
            beats::beat("haproxy", beats::PATIENT);
            let want = wants.borrow_and_update().clone();
            let pause = match self.advance(want.as_deref()).await {
                Ok(()) => {
                    retry.reset();
                    LOOK_AGAIN
                }
                Err(trouble) => {
                    self.tell(trouble, want.as_deref()).await;
                    retry.failed()
                }
            };
            tokio::select! {
                changed = wants.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    retry.reset();
                    sleep(DEBOUNCE).await;
                }
                () = sleep(pause) => {}
            }
        }
    }

    async fn advance(&mut self, want: Option<&Config>) -> Result<(), Trouble> {
        let Some(want) = want else { return Ok(()) };
        if !self.left_out.is_empty() {
            let listeners = self.service.listeners();
            let still = |frontend: &Frontend| Some((*frontend, taken::in_the_way(&listeners, frontend)?));
            self.left_out = self.left_out.keys().filter_map(still).collect();
        }
        let (possible, problems) = self.without_left_out(want);
        let frontends = keys(Some(&possible));
        let state = if frontends.is_empty() { State::Idle } else { State::Active };
        match state {
            State::Idle => self.rest().await?,
            _ => self.bring(possible).await?,
        }
        let (tried, taken) = (keys(Some(want)), self.taken());
        self.publish(|status| {
            *status = Status { state, frontends, tried, taken, problems, reloads: status.reloads }
        });
        Ok(())
    }

    /// Nothing is to be served here.
    async fn rest(&mut self) -> Result<(), Trouble> {
        if files::read(&self.paths.config)?.is_some() {
            self.service.stop().await?;
            files::remove(&self.paths.config)?;
            files::remove(&self.paths.loaded)?;
            info!("haproxy stopped: there is nothing for it to serve");
        }
        self.running = None;
        Ok(())
    }

    /// Does without what HAProxy could not listen at: it would serve nothing else then.
    fn without_left_out(&mut self, want: &Config) -> (Config, Vec<Finding>) {
        let mut possible = want.clone();
        let mut problems = Vec::new();
        let is_ipv6 = |frontend: &Frontend| frontend.vip.is_ipv6();
        let lacks_ipv6 = want.frontends.keys().any(is_ipv6) && !self.service.has_ipv6();
        for (frontend, proxy) in want.frontends.iter().filter(|(frontend, _)| lacks_ipv6 && is_ipv6(frontend))
        {
            possible.frontends.remove(frontend);
            let text = format!("not served here at {frontend}: this host has no IPv6");
            problems.push(Finding::new(&*proxy.owner, text).mend("boot it without ipv6.disable=1"));
        }
        for (frontend, listener) in &self.left_out {
            if let Some(proxy) = possible.frontends.remove(frontend) {
                let everywhere = listener.ip().is_unspecified();
                let all = format!("on port {} of all addresses", frontend.port);
                let place = if everywhere { all.as_str() } else { "there" };
                let text =
                    format!("not served here at {frontend}: another program of this host listens {place}");
                let mend =
                    format!("ss -ltnp 'sport = :{}', and have it listen on its own addresses", frontend.port);
                problems.push(Finding::new(proxy.owner, text).mend(mend));
            }
        }
        (possible, problems)
    }

    /// Has HAProxy run `want`.
    async fn bring(&mut self, want: Config) -> Result<(), Trouble> {
        let unit = self.service.state().await?;
        if let Some(error) = unit.obstacle() {
            return Err(error.into());
        }
        let text = render(&want, &self.paths.socket);
        let loaded = files::read(&self.paths.loaded)?;
        let written = files::read(&self.paths.config)?.as_ref() == Some(&text);
        let told = written && loaded.as_ref() == Some(&text) && unit.runs();
        if !told || !self.serves(&want).await {
            if !written {
                self.write(&text).await?;
            } else if !unit.runs() {
                self.is_installed().await?;
            }
            if let Err(trouble) = self.act(&unit, &want).await {
                return Err(self.roll_back(&want, loaded.filter(|loaded| *loaded != text), trouble).await?);
            }
            files::replace(&self.paths.loaded, &text, files::PUBLIC)?;
        }
        self.tidy(&want).await;
        self.running = Some(want);
        Ok(())
    }

    /// HAProxy may have gone since it accepted the file; why its unit cannot be started would not be seen from that.
    async fn is_installed(&mut self) -> Result<(), Trouble> {
        match self.service.accepts(&self.paths.config).await {
            Err(error @ ProgramError::NotInstalled) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Replaces the file by one that HAProxy accepts.
    async fn write(&mut self, text: &str) -> Result<(), Trouble> {
        let draft = files::draft(&self.paths.config);
        files::write_draft(&draft, text, files::PUBLIC)?;
        if let Err(error) = self.service.accepts(&draft).await {
            files::remove(&draft)?;
            return Err(error.into());
        }
        files::publish(&draft, &self.paths.config)?;
        Ok(())
    }

    /// Has HAProxy do what its file says, and confirms that it does.
    async fn act(&mut self, unit: &UnitState, want: &Config) -> Result<(), Trouble> {
        if !unit.runs() {
            self.service.start().await?;
            self.confirm(want, None).await?;
            info!(frontends = want.frontends.len(), "haproxy started");
            return Ok(());
        }
        if self.change_servers(want).await {
            return Ok(());
        }
        // The new process knows nothing of the connections of this one, which nobody can speak to any more then.
        if let Some(have) = self.proxies().await {
            self.tell_all(&servers::tidy(want, &have).end).await;
        }
        let before = self.process().await;
        self.service.reload().await?;
        self.confirm(want, before).await?;
        info!(frontends = want.frontends.len(), "haproxy reloaded");
        self.publish(|status| status.reloads += 1);
        Ok(())
    }

    /// Changes servers, and closes and opens frontends, while HAProxy runs on; `false` where that is not all or did not do.
    async fn change_servers(&mut self, want: &Config) -> bool {
        if !self.running.as_ref().is_some_and(|running| running.same_but_servers(want)) {
            return false;
        }
        let Some(have) = self.proxies().await.filter(|have| servers::has_all(want, have)) else {
            return false;
        };
        let commands = servers::commands(want, &have);
        if commands.len() > MOST_COMMANDS {
            return false;
        }
        for command in &commands {
            let _ = self.service.ask(command).await;
            info!("haproxy: {command}");
        }
        self.serves(want).await
    }

    /// Sees to servers that are none any more. What does not come to anything now is seen to at the next look.
    async fn tidy(&mut self, want: &Config) {
        let Some(have) = self.proxies().await else { return };
        let Tidying { end, delete } = servers::tidy(want, &have);
        self.tell_all(&end).await;
        self.tell_all(&delete[..delete.len().min(MOST_COMMANDS)]).await;
    }

    async fn tell_all(&mut self, commands: &[String]) {
        for command in commands {
            if self.service.ask(command).await.is_ok_and(|answer| servers::is_done(&answer)) {
                info!("haproxy: {command}");
            }
        }
    }

    /// Waits until a process other than `before` serves what is wanted: after a failed reload the old one serves on.
    async fn confirm(&mut self, want: &Config, before: Option<String>) -> Result<(), Trouble> {
        let started = Instant::now();
        while started.elapsed() < TAKING_OVER {
            let process = self.process().await;
            if process.is_some() && process != before && self.serves(want).await {
                return Ok(());
            }
            if !self.service.state().await?.runs() {
                break;
            }
            sleep(POLL).await;
        }
        Err(Trouble::failed("did not take its new configuration over"))
    }

    /// The number of the process that serves now.
    async fn process(&mut self) -> Option<String> {
        let answer = self.service.ask("show info").await.ok()?;
        answer.lines().find_map(|line| Some(line.strip_prefix("Pid: ")?.to_owned()))
    }

    async fn proxies(&mut self) -> Option<servers::Proxies> {
        servers::read(&self.service.ask(SHOW).await.ok()?)
    }

    async fn serves(&mut self, want: &Config) -> bool {
        self.proxies().await.is_some_and(|have| servers::as_wanted(want, &have))
    }

    /// Brings the file that worked back, so that HAProxy comes up with it whatever happens; where other programs have the
    /// place of what is wanted, does without that.
    async fn roll_back(
        &mut self,
        want: &Config,
        loaded: Option<String>,
        trouble: Trouble,
    ) -> Result<Trouble, Trouble> {
        if let Some(loaded) = loaded {
            warn!("haproxy did not take its new configuration over: the one before is brought back");
            files::replace(&self.paths.config, loaded, files::PUBLIC)?;
        }
        let own = self.listens_at().await;
        let listeners = self.service.listeners();
        for frontend in want.frontends.keys() {
            let found = taken::in_the_way(&listeners, frontend);
            let others = |at: &SocketAddr| {
                at.ip().is_unspecified() || own.as_ref().is_some_and(|own| !own.contains(&name(frontend)))
            };
            self.left_out.extend(found.filter(others).map(|listener| (*frontend, listener)));
        }
        Ok(trouble)
    }

    /// The frontends that were left out for a listener on all addresses.
    fn taken(&self) -> BTreeSet<Frontend> {
        let everywhere = self.left_out.iter().filter(|(_, listener)| listener.ip().is_unspecified());
        everywhere.map(|(frontend, _)| *frontend).collect()
    }

    /// The proxies that the HAProxy that runs listens for, if one does; `None` where it does not say.
    async fn listens_at(&mut self) -> Option<BTreeSet<String>> {
        if !self.service.state().await.ok()?.runs() {
            return Some(BTreeSet::new());
        }
        let open = self.proxies().await?.into_iter().filter(|(_, seen)| seen.open);
        Some(open.map(|(name, _)| name).collect())
    }

    /// Says what is the matter, and what is served all the same: frontends that rest need nothing of HAProxy.
    async fn tell(&mut self, trouble: Trouble, want: Option<&Config>) {
        if self.status.borrow().state != trouble.state {
            warn!(state = %trouble.state, "haproxy is not as wanted");
        }
        let served = want.zip(self.listens_at().await).map(|(want, open)| {
            let served =
                |(frontend, proxy): &(&Frontend, &Proxy)| proxy.rests() || open.contains(&name(frontend));
            want.frontends.iter().filter(served).map(|(frontend, _)| *frontend).collect()
        });
        let taken = self.taken();
        self.publish(|status| {
            status.state = trouble.state;
            status.problems = vec![trouble.finding];
            status.tried = keys(want);
            status.taken = taken;
            if let Some(served) = served {
                status.frontends = served;
            }
        });
    }

    /// Wakes the readers only when something changed.
    fn publish(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

fn keys(config: Option<&Config>) -> BTreeSet<Frontend> {
    config.iter().flat_map(|config| config.frontends.keys().copied()).collect()
}

#[cfg(test)]
mod tests;
