//! The client against a kernel of paper: the other end of a socket pair, which answers as each test says.

use std::sync::{Arc, Mutex};
use std::thread;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::super::model::{Forward, RealServer};
use super::*;
use crate::model::{Backend, Frontend, Protocol};
use crate::netlink::wire::Writer;

const FAMILY: u16 = 0x1c;
const GET_FAMILY: u8 = 3;
const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const GET_SERVICE: u8 = 4;
const SET_DEST: u8 = 6;
const GET_DEST: u8 = 8;

/// A request as the paper kernel sees it.
struct Request {
    /// Its place among all requests to IPVS, from 0; questions for the family do not count.
    number: usize,
    command: u8,
}

/// Objects to answer with, then an error number or 0.
type Answer = (Vec<Vec<u8>>, i32);

/// What went over the socket: for each datagram, the commands in it. Questions for the family are left out.
type Log = Arc<Mutex<Vec<Vec<u8>>>>;

/// A client of a kernel that answers requests by `answer`, and hangs up when it is `None`.
fn client(mut answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static) -> (Client, Log) {
    let (ours, kernels) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let log = Log::default();
    let writes = Arc::clone(&log);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let mut number = 0;
        while let Ok((length @ 1.., _)) = recv(&kernels, buffer.as_mut_slice(), RecvFlags::empty()) {
            let requests = requests(&buffer[..length]);
            let commands: Vec<u8> =
                requests.iter().filter(|(kind, ..)| *kind == FAMILY).map(|(.., command)| *command).collect();
            // Before the answers: with the last of them the test goes on and looks.
            writes.lock().unwrap().extend((!commands.is_empty()).then_some(commands));
            for (kind, sequence, command) in requests {
                let (objects, error) = if kind == FAMILY {
                    let request = Request { number, command };
                    number += 1;
                    let Some(answer) = answer(&request) else { return };
                    answer
                } else {
                    assert_eq!(command, GET_FAMILY);
                    (vec![family_object()], 0)
                };
                for mut object in objects {
                    object[8..12].copy_from_slice(&sequence.to_ne_bytes());
                    send(&kernels, &object, SendFlags::empty()).unwrap();
                }
                send(&kernels, &end(sequence, error), SendFlags::empty()).unwrap();
            }
        }
    });
    (Client { socket: Socket::over(ours).unwrap() }, log)
}

/// Family, sequence number and command of each request in `datagram`.
fn requests(mut datagram: &[u8]) -> Vec<(u16, u32, u8)> {
    let mut requests = Vec::new();
    while !datagram.is_empty() {
        let word = |at: usize| u32::from_ne_bytes(datagram[at..at + 4].try_into().unwrap());
        let kind = u16::from_ne_bytes(datagram[4..6].try_into().unwrap());
        requests.push((kind, word(8), datagram[16]));
        datagram = &datagram[word(0) as usize..];
    }
    requests
}

fn end(sequence: u32, error: i32) -> Vec<u8> {
    [20, 2, sequence, 0, (-error).cast_unsigned()].map(u32::to_ne_bytes).concat()
}

fn family_object() -> Vec<u8> {
    let mut writer = Writer::generic(0x10, 0, 0, 1, 2);
    writer.put_u16(1, FAMILY);
    writer.finish()
}

fn frontend(port: u16) -> Key {
    Frontend { vip: "10.87.2.50".parse().unwrap(), protocol: Protocol::Tcp, port }.into()
}

fn backend(last: u8) -> Backend {
    Backend { address: [10, 2, 4, last].into(), port: 8080 }
}

fn service(scheduler: &str) -> Service {
    Service { scheduler: scheduler.into(), persistence: None, flags: 0 }
}

fn real(weight: u32) -> RealServer {
    RealServer::new(Forward::Masquerade, weight)
}

/// `frontend(port)` as a dump would say it.
fn service_object(port: u16) -> Vec<u8> {
    codec::command(FAMILY, 0, &Command::NewService(frontend(port), service("wlc")))
}

/// `backend(last)` with 2 active connections and 3 inactive ones as a dump would say it.
fn dest_object(last: u8) -> Vec<u8> {
    let mut writer = Writer::generic(FAMILY, 0, 0, 5, 1);
    writer.nest(2, |writer| {
        writer.put(1, &[10, 2, 4, last]);
        writer.put(2, &8080u16.to_be_bytes());
        for (kind, value) in [(3, 0), (4, 1), (5, 0), (6, 0), (7, 2), (8, 3)] {
            writer.put_u32(kind, value);
        }
    });
    writer.finish()
}

/// The error's number, 0 for none.
fn number(error: Option<&Errno>) -> i32 {
    error.map_or(0, |errno| errno.raw_os_error())
}

/// What `command` comes to when the kernel answers it and further tries with `errors`, then with success.
#[track_caller]
fn check(command: &Command, errors: &'static [Errno], expected: Result<(), &str>) {
    let (mut client, _) = client(move |request| Some((Vec::new(), number(errors.get(request.number)))));
    let result = client.apply(std::slice::from_ref(command));
    let texts: Vec<String> = result.iter().map(|(_, error)| error.to_string()).collect();
    assert_eq!(texts, expected.err().as_slice(), "{command}");
}

#[test]
fn already_there_and_already_gone_are_success() {
    check(&Command::NewService(frontend(80), service("wlc")), &[Errno::EXIST], Ok(()));
    check(&Command::NewDest(frontend(80), backend(1), real(1)), &[Errno::EXIST], Ok(()));
    check(&Command::DelService(frontend(80)), &[Errno::SRCH], Ok(()));
    check(&Command::DelDest(frontend(80), backend(1)), &[Errno::NOENT], Ok(()));
    check(&Command::DelDest(frontend(80), backend(1)), &[Errno::SRCH], Ok(()));
}

#[test]
fn every_refusal_says_what_was_to_be_done_or_the_mend() {
    let unknown = "add virtual server tcp 10.87.2.50:80 mh: scheduler mh is not known to this kernel: modprobe ip_vs_mh";
    check(&Command::NewService(frontend(80), service("mh")), &[Errno::NOENT], Err(unknown));
    let missing =
        "set real server 10.2.4.1:8080 of tcp 10.87.2.50:80 to weight 0: there is no such real server";
    check(&Command::SetDest(frontend(80), backend(1), real(0)), &[Errno::NOENT], Err(missing));
    let lost = "add real server 10.2.4.1:8080 weight 1 to tcp 10.87.2.50:80: there is no such virtual server";
    check(&Command::NewDest(frontend(80), backend(1), real(1)), &[Errno::SRCH], Err(lost));
    check(&Command::NewDest(frontend(80), backend(1), real(1)), &[Errno::EXIST, Errno::SRCH], Err(lost));
    let permission = "IPVS refuses this process: it needs root or CAP_NET_ADMIN";
    check(&Command::DelService(frontend(80)), &[Errno::PERM], Err(permission));
}

#[test]
fn what_exists_is_set_instead() {
    let (mut client, log) =
        client(|request| Some((Vec::new(), number([Errno::EXIST; 2].get(request.number)))));
    let commands = [
        Command::NewService(frontend(80), service("wlc")),
        Command::NewDest(frontend(80), backend(1), real(1)),
    ];
    assert_eq!(client.apply(&commands), []);
    let log = log.lock().unwrap();
    assert_eq!(*log, [vec![NEW_SERVICE, 5], vec![SET_SERVICE, SET_DEST]]);
}

#[test]
fn many_commands_go_a_hundred_a_send_and_fail_alone() {
    let (mut client, log) = client(|request| {
        let error = (request.number % 100 == 42).then_some(&Errno::RANGE);
        Some((Vec::new(), number(error)))
    });
    let commands: Vec<Command> =
        (0..250).map(|last| Command::NewDest(frontend(80), backend(last), real(1))).collect();
    let failed: Vec<usize> = client.apply(&commands).into_iter().map(|(index, _)| index).collect();
    assert_eq!(failed, [42, 142, 242]);
    let sizes: Vec<usize> = log.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[test]
fn all_that_is_not_answered_failed() {
    let (mut client, _) = client(|request| (request.number < 3).then(|| (Vec::new(), 0)));
    let commands = vec![Command::DelService(frontend(80)); 5];
    let failed: Vec<usize> = client.apply(&commands).into_iter().map(|(index, _)| index).collect();
    assert_eq!(failed, [3, 4]);
}

#[test]
fn a_table_is_read_with_connections_and_without_what_is_not_asked_for() {
    let (mut client, _) = client(|request| {
        let objects = match request.command {
            GET_SERVICE => vec![service_object(80), service_object(443)],
            GET_DEST => vec![dest_object(2), dest_object(1)],
            other => panic!("command {other}"),
        };
        Some((objects, 0))
    });
    let table = client.table(&|key| *key == frontend(80)).unwrap();
    let real = RealServer { connections: 5, ..real(1) };
    let real_servers = [(backend(1), real), (backend(2), real)].into();
    let expected = VirtualServer { real_servers, ..VirtualServer::new(service("wlc")) };
    assert_eq!(table, Table::from([(frontend(80), expected)]));
}

/// Ports of the virtual servers that each dump lists in turn, the last for ever; then the table's ports.
#[track_caller]
fn check_dumps(dumps: &'static [&'static [u16]], expected: Result<&[u16], Error>) {
    let mut dump = dumps.iter();
    let mut listed = dumps[0];
    let (mut client, _) = client(move |request| {
        if request.command == GET_SERVICE {
            listed = dump.next().unwrap_or(&listed);
            return Some((listed.iter().map(|port| service_object(*port)).collect(), 0));
        }
        Some((Vec::new(), 0))
    });
    let ports = client
        .table(&|_| true)
        .map(|table| table.keys().filter_map(|key| Some(key.frontend()?.port)).collect::<Vec<_>>());
    assert_eq!(ports, expected.map(<[u16]>::to_vec), "{dumps:?}");
}

#[test]
fn a_disturbed_dump_is_repeated() {
    check_dumps(&[&[80]], Ok(&[80]));
    check_dumps(&[&[80, 443], &[80], &[80], &[80]], Ok(&[80]));
    check_dumps(&[&[80, 80], &[80], &[80]], Ok(&[80]));
    check_dumps(&[&[80, 80]], Err(Error::Unsteady));
}

/// Whether the virtual servers of ports 80 and 443 are there with `wlc`, when the kernel answers for each port as `answer`
/// says.
#[track_caller]
fn check_has(answers: [Answer; 2], expected: Result<bool, Error>) {
    let (mut client, log) = client(move |request| Some(answers[request.number].clone()));
    let wlc = service("wlc");
    assert_eq!(client.has(&[(frontend(80), &wlc), (frontend(443), &wlc)]), expected);
    assert_eq!(*log.lock().unwrap(), [vec![GET_SERVICE; 2]], "in one send");
}

#[test]
fn a_probe_sees_what_is_gone_or_changed() {
    let there = |port| (vec![service_object(port)], 0);
    let gone = || (Vec::new(), Errno::SRCH.raw_os_error());
    let other = || (vec![codec::command(FAMILY, 0, &Command::NewService(frontend(443), service("rr")))], 0);
    check_has([there(80), there(443)], Ok(true));
    check_has([there(80), gone()], Ok(false));
    check_has([gone(), there(443)], Ok(false));
    check_has([there(80), other()], Ok(false));
    check_has([there(80), (Vec::new(), 1)], Err(Error::NotPermitted));
}

/// Many are listed, and what the list lacks is asked for: others may have disturbed it.
#[test]
fn of_many_only_those_that_are_not_listed_are_asked_for() {
    let ports = 1..=u16::try_from(MANY).unwrap();
    let wlc = service("wlc");
    let expected: Vec<_> = ports.clone().map(|port| (frontend(port), &wlc)).collect();
    for (there, answer) in [(true, 0), (false, Errno::SRCH.raw_os_error())] {
        let listed: Vec<_> = ports.clone().skip(1).map(service_object).collect();
        let (mut client, log) = client(move |request| {
            let asked = (if there { vec![service_object(1)] } else { Vec::new() }, answer);
            Some(if request.number == 0 { (listed.clone(), 0) } else { asked })
        });
        assert_eq!(client.has(&expected), Ok(there));
        assert_eq!(*log.lock().unwrap(), [[GET_SERVICE], [GET_SERVICE]]);
    }
}

#[test]
fn a_probe_sees_real_servers_that_are_gone_or_changed() {
    let check = |listed: &'static [u8], wanted: &[(u8, u32)], expected: bool| {
        let (mut client, _) = client(|_| Some((listed.iter().map(|last| dest_object(*last)).collect(), 0)));
        let real_servers = wanted.iter().map(|(last, weight)| (backend(*last), real(*weight))).collect();
        let server = VirtualServer { real_servers, ..VirtualServer::new(service("wlc")) };
        assert_eq!(
            client.has_real_servers(&[(frontend(80), &server)]),
            Ok(expected),
            "{listed:?} {wanted:?}"
        );
    };
    check(&[2, 1], &[(1, 1), (2, 1)], true);
    check(&[], &[], true);
    check(&[2], &[(1, 1), (2, 1)], false);
    check(&[3, 1], &[(1, 1), (2, 1)], false);
    check(&[2, 1], &[(1, 1)], false);
    check(&[2, 1], &[(1, 1), (2, 0)], false);
}

#[test]
fn sync_daemons_that_do_not_run_were_stopped() {
    let daemon = SyncDaemon { role: sync::Role::Master, interface: "eth9".into(), sync_id: 50 };
    let answer = |command: &SyncCommand, errno: Errno| {
        let (mut client, _) = client(move |_| Some((Vec::new(), errno.raw_os_error())));
        client.change_sync(command).map_err(|error| error.to_string())
    };
    assert_eq!(answer(&SyncCommand::Stop(daemon.clone()), Errno::SRCH), Ok(()));
    let refusal = "start sync daemon master on eth9, sync ID 50: No such device (os error 19)";
    assert_eq!(answer(&SyncCommand::Start(daemon), Errno::NODEV), Err(refusal.into()));
}
