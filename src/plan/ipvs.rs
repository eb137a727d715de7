//! The changes of the virtual servers of one frontend.

use std::collections::BTreeMap;

use super::{Have, Plan};
use crate::derive::{Balanced, Served, WantedServer};
use crate::ipvs::{Command, Key, RealServer, VirtualServer};
use crate::model::{Backend, Protocol};

/// What is wanted of each real server, and how it is while it gets connections.
type Wanted = BTreeMap<Backend, (WantedServer, RealServer)>;

/// Plans what makes the virtual servers of `served` serve as wanted. `protocol` is the frontend's.
pub fn serve(protocol: Protocol, served: &Served, have: &Have, plan: &mut Plan) {
    for balanced in &served.virtual_servers {
        let mut wanted: Wanted =
            served.real_servers(balanced).map(|(backend, wanted, real)| (backend, (wanted, real))).collect();
        let now = have.table.get(&balanced.key);
        properties(balanced, now, plan);
        let one = One { key: balanced.key, now, have, forgets: protocol != Protocol::Tcp };
        if one.goes_by_order(balanced) {
            // Who has connections differs from node to node.
            wanted.retain(|_, (wanted, _)| *wanted != WantedServer::Lingering);
            one.in_order(&wanted, plan);
        } else {
            one.in_any_order(&wanted, plan);
        }
        let here = now.into_iter().flat_map(|now| now.real_servers.keys());
        let unwanted = here.filter(|backend| !wanted.contains_key(backend));
        plan.retire.extend(unwanted.map(|backend| Command::DelDest(balanced.key, *backend)));
    }
}

fn properties(balanced: &Balanced, now: Option<&VirtualServer>, plan: &mut Plan) {
    let Balanced { key, service, .. } = balanced;
    match now {
        None => plan.prepare.push(Command::NewService(*key, service.clone())),
        Some(now) if now.service != *service => plan.prepare.push(Command::SetService(*key, service.clone())),
        Some(_) => {}
    }
}

/// One virtual server, while its real servers are planned.
struct One<'a> {
    key: Key,
    now: Option<&'a VirtualServer>,
    have: &'a Have<'a>,
    /// Its clients may keep one source port for ever (UDP, SCTP), so that a real server that drains goes at once.
    forgets: bool,
}

impl One<'_> {
    /// Whether the order of its real servers counts, by the scheduler that it is to have and can have.
    fn goes_by_order(&self, wanted: &Balanced) -> bool {
        let keeps_its_own = self.have.refused.contains(&(self.key, None));
        let has_one = self.now.filter(|_| keeps_its_own);
        wanted.goes_by_order(has_one.map_or(&wanted.service, |now| &now.service))
    }

    /// Whether the kernel will not have `backend`, which is then in nobody's way.
    fn is_refused(&self, backend: &Backend) -> bool {
        self.here(backend).is_none() && self.have.refused.contains(&(self.key, Some(*backend)))
    }

    /// Whether `backend`, while it gets no connections, has the places of that weight. Setting a weight of 0 takes none away, so
    /// then any are right.
    fn has_places_of(&self, backend: &Backend, weight: u32) -> bool {
        weight == 0 || self.now.is_some_and(|now| now.last_weight(backend) == weight)
    }

    fn here(&self, backend: &Backend) -> Option<&RealServer> {
        self.now.and_then(|now| now.real_servers.get(backend))
    }

    /// Weights are taken away last of all, so that one has a weight all the while.
    fn in_any_order(&self, wanted: &Wanted, plan: &mut Plan) {
        let mut zeroed = Vec::new();
        for (backend, (wanted, real)) in wanted {
            match wanted {
                WantedServer::Active => plan.prepare.extend(self.bring(*backend, *real)),
                WantedServer::Idle => zeroed.extend(self.bring(*backend, idle(*real))),
                WantedServer::Draining => {
                    let over = self.have.drained.contains(&(self.key, *backend));
                    plan.retire.extend(self.drain(*backend, *real, over));
                }
                WantedServer::Lingering => plan.retire.extend(self.drain(*backend, *real, false)),
            }
        }
        plan.prepare.extend(zeroed);
    }

    /// Adds a real server, or changes one that is not as wanted.
    fn bring(&self, backend: Backend, real: RealServer) -> Option<Command> {
        match self.here(&backend) {
            None => Some(Command::NewDest(self.key, backend, real)),
            Some(here) if !here.same_as(&real) => Some(Command::SetDest(self.key, backend, real)),
            Some(_) => None,
        }
    }

    /// Weight 0 first, removal when the connections are gone or the time is `over`. A real server that is not here has
    /// drained already, or never served.
    fn drain(&self, backend: Backend, real: RealServer, over: bool) -> Option<Command> {
        let here = self.here(&backend)?;
        if self.forgets || (here.weight == 0 && (over || here.connections == 0)) {
            return Some(Command::DelDest(self.key, backend));
        }
        (here.weight > 0).then_some(Command::SetDest(self.key, backend, idle(real)))
    }

    /// Real servers stand in the order of their addresses, whatever came when, and each has had its weight last: what mh
    /// makes of them depends on both (ip_vs_mh.c: a weight of 0 keeps the places that the last other weight had), and
    /// every node must come to the same. The weight of an idle one that is another now is set, and taken away again. One
    /// that drains is as long there on all, so it goes by time alone.
    ///
    /// One that comes between others has those behind it removed and added again, one at a time, as the kernel puts a new
    /// one at the head of its list and moves none. Nearly all their connections find them again (ip_vs_trash_get_dest,
    /// ip_vs_ctl.c). With expire_nodest_conn, which must be 1, the kernel forgets those of which a packet comes while their
    /// real server is out, and since Linux 5.9 those of one that is out a tick after a removal
    /// (ip_vs_expire_nodest_conn_flush, ip_vs_conn.c); it hashes them anew when they go on.
    ///
    /// Weights are taken away last of all here too.
    fn in_order(&self, wanted: &Wanted, plan: &mut Plan) {
        let stays = |backend: &Backend| {
            if self.is_refused(backend) {
                return false;
            }
            let drained = self.have.drained.contains(&(self.key, *backend));
            wanted
                .get(backend)
                .is_some_and(|(wanted, _)| *wanted != WantedServer::Draining || !(drained || self.forgets))
        };
        let added = self.now.into_iter().flat_map(|now| &now.added).map(|(backend, _)| backend);
        let added: Vec<&Backend> = added.filter(|backend| stays(backend)).collect();
        let target: Vec<&Backend> = wanted.keys().filter(|backend| stays(backend)).collect();
        let settled = added.iter().zip(&target).take_while(|(here, there)| here == there).count();
        let mut zeroed = Vec::new();
        for (position, backend) in target.into_iter().enumerate() {
            let (state, real) = wanted[backend];
            let is_active = state == WantedServer::Active;
            if position >= settled {
                plan.prepare.extend(self.here(backend).map(|_| Command::DelDest(self.key, *backend)));
                plan.prepare.push(Command::NewDest(self.key, *backend, real));
                zeroed.extend((!is_active).then(|| Command::SetDest(self.key, *backend, idle(real))));
            } else if is_active {
                plan.prepare.extend(self.bring(*backend, real));
            } else if self.has_places_of(backend, real.weight) {
                zeroed.extend(self.bring(*backend, idle(real)));
            } else {
                plan.prepare.push(Command::SetDest(self.key, *backend, real));
                zeroed.push(Command::SetDest(self.key, *backend, idle(real)));
            }
        }
        plan.prepare.extend(zeroed);
        let done = wanted.keys().filter(|backend| !stays(backend) && self.here(backend).is_some());
        plan.retire.extend(done.map(|backend| Command::DelDest(self.key, *backend)));
    }
}

/// The same, without new connections.
fn idle(real: RealServer) -> RealServer {
    RealServer { weight: 0, ..real }
}
