//! The changes of one virtual server.

use super::{Have, Plan};
use crate::derive::{Served, WantedServer};
use crate::ipvs::model::Forward;
use crate::ipvs::{Command, RealServer, VirtualServer};
use crate::model::{Backend, Frontend, Protocol};

/// A real server that gets connections.
const ACTIVE: RealServer = RealServer { forward: Forward::Masquerade, weight: 1, connections: 0 };
/// A real server that keeps the connections it has.
const DRAINING: RealServer = RealServer { weight: 0, ..ACTIVE };

/// Plans what makes the virtual server of `frontend` serve as wanted.
pub fn serve(frontend: Frontend, served: &Served, have: &Have, plan: &mut Plan) {
    let now = have.table.get(&frontend);
    match now {
        None => plan.prepare.push(Command::NewService(frontend, served.virtual_server.clone())),
        Some(now) if now.service != served.virtual_server => {
            plan.prepare.push(Command::SetService(frontend, served.virtual_server.clone()));
        }
        Some(_) => {}
    }
    for (backend, wanted) in &served.servers {
        let here = now.and_then(|now| now.real_servers.get(backend));
        match wanted {
            WantedServer::Active => plan.prepare.extend(activate(frontend, *backend, here)),
            WantedServer::Draining => plan.retire.extend(drain(frontend, *backend, here, have)),
        }
    }
    plan.retire.extend(unwanted(frontend, served, now));
}

fn activate(frontend: Frontend, backend: Backend, here: Option<&RealServer>) -> Option<Command> {
    match here {
        None => Some(Command::NewDest(frontend, backend, ACTIVE)),
        Some(here) if (here.weight, here.forward) != (ACTIVE.weight, ACTIVE.forward) => {
            Some(Command::SetDest(frontend, backend, ACTIVE))
        }
        Some(_) => None,
    }
}

/// Weight 0 first, removal when the connections are gone or the time is up. UDP and SCTP clients may keep one source port
/// for ever, so they are sent elsewhere at once. A real server that is not here has drained already, or never served.
fn drain(frontend: Frontend, backend: Backend, here: Option<&RealServer>, have: &Have) -> Option<Command> {
    let here = here?;
    let done = here.connections == 0 || have.drained.contains(&(frontend, backend));
    if frontend.protocol != Protocol::Tcp || (here.weight == 0 && done) {
        return Some(Command::DelDest(frontend, backend));
    }
    (here.weight > 0).then_some(Command::SetDest(frontend, backend, DRAINING))
}

fn unwanted(
    frontend: Frontend,
    served: &Served,
    now: Option<&VirtualServer>,
) -> impl Iterator<Item = Command> {
    let here = now.into_iter().flat_map(|now| now.real_servers.keys());
    here.filter(|backend| !served.servers.contains_key(backend))
        .map(move |backend| Command::DelDest(frontend, *backend))
}
