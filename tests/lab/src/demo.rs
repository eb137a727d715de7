//! The story that `make demo` tells: kvip installed on three nodes, a VIP served, a pod come and gone, and the
//! holder's death outlived, with a client that keeps asking.
//!
//! Owns the order of the acts and what each waits for. Everything shown is what the machines said.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context;

use crate::command::Output;
use crate::kvip::Settings;
use crate::lab::{Lab, Node, Options};
use crate::layout::API_URL;
use crate::probe::{Probe, Report};
use crate::prober::{Outcome, Sample};
use crate::progress::patiently;
use crate::stage::Stage;

const VIP: &str = "10.87.2.50";
const URL: &str = "http://10.87.2.50";
const TUTORIAL: &str = "tests/golden/tutorial";
/// The node whose installation is shown.
const FIRST: &str = "node-a";
const DEPLOYMENT: &str = "nginx-deployment";
/// Time between the client's requests.
const INTERVAL: Duration = Duration::from_millis(250);
/// Requests shown before the power cut: a second of them.
const SHOWN_BEFORE: usize = 4;
/// Answers without a failure after which the VIP counts as served again: four seconds.
const CALM: usize = 16;
/// What the cluster, kvip or VRRP may take under emulation on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Tells the whole story of that package on a lab of its own, which ends with it. Fails at the first thing that did not happen.
pub fn run(deb: &Path) -> anyhow::Result<()> {
    let stage = Stage::from_environment();
    stage.act(1, "Three nodes, and kvip on each");
    stage.tell("Three Debian machines, a cluster and a client are started; they end with this demo.");
    let lab = Lab::start(Options::default())?;
    let story = Story { stage, lab };
    story.install(deb)?;
    story.apply()?;
    story.answer()?;
    let holder = story.look()?;
    let probe = story.lab.probe(VIP, 80, INTERVAL)?;
    story.scale(&probe, holder)?;
    let fall = story.power_cut(&probe, holder)?;
    let report = patiently("the last answers", || probe.stop())?;
    story.summary(&report, &fall);
    Ok(())
}

/// The holder's end as it was seen.
struct Fall {
    /// When the power was cut.
    at: SystemTime,
    /// The holder until then.
    from: &'static str,
    /// The holder since.
    to: &'static str,
}

struct Story {
    stage: Stage,
    lab: Lab,
}

impl Story {
    fn install(&self, deb: &Path) -> anyhow::Result<()> {
        self.kubectl(&["get", "nodes", "-o", "wide"])?;
        self.stage.tell("kvip's own identity in the cluster, then on a node the package and its settings:");
        self.stage.typed("admin", &format!("packaging/rbac/make-kubeconfig --server {API_URL} >kubeconfig"));
        let kubeconfig = patiently("an identity for kvip", || self.lab.enroll())?;
        let settings = Settings::default();
        let (name, node) = (FIRST, self.lab.node(FIRST));
        let file = deb.file_name().context("a package has a file name")?.to_string_lossy();
        patiently("the files on their way to the node", || {
            node.copy_in(deb, &format!("/tmp/{file}"))?;
            node.write("/tmp/kubeconfig", kubeconfig.as_bytes())
        })?;
        self.done_on(name, &format!("dpkg -i /tmp/{file}"))?;
        self.done_on(name, "install -m 0600 /tmp/kubeconfig /etc/kvip/kubeconfig")?;
        node.write("/etc/kvip/config.toml", settings.toml().as_bytes())?;
        self.done_on(name, "cat /etc/kvip/config.toml")?;
        self.done_on(name, "kvip check")?;
        self.done_on(name, "systemctl enable --now kvip")?;
        self.stage.tell("The same on the other nodes.");
        patiently("installing on two nodes", || {
            let others = |node: Node| match node.spec().name {
                FIRST => Ok(()),
                _ => node.install_kvip(deb, &settings, &kubeconfig),
            };
            self.lab.on_all_nodes(others).into_iter().collect::<anyhow::Result<()>>()
        })?;
        self.in_sync(name)?;
        self.on(name, "systemctl status kvip --no-pager --lines 0")
    }

    fn apply(&self) -> anyhow::Result<()> {
        self.stage.act(2, "The tutorial's objects");
        let folder = self.lab.layout().repo.join(TUTORIAL);
        let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
        self.on_host("admin", &["cat", &file("vip-configmap.yaml")])?;
        for name in ["nginx.yaml", "vip-configmap.yaml"] {
            self.kubectl(&["apply", "-f", &file(name)])?;
        }
        self.kubectl(&["rollout", "status", "deployment", DEPLOYMENT])?;
        self.kubectl(&["get", "pods", "-o", "wide"])
    }

    fn answer(&self) -> anyhow::Result<()> {
        self.stage.act(3, "A client, which is no node, asks the VIP");
        self.stage.typed("client", &format!("curl {URL}"));
        self.curl()
    }

    fn look(&self) -> anyhow::Result<&'static str> {
        let holder = self.holder_but(None)?;
        self.stage.act(4, &format!("What is on a node: {holder}, which holds the VIP"));
        for command in ["kvip status", "cat /etc/keepalived/keepalived.conf", "ipvsadm -Ln"] {
            self.on(holder, command)?;
        }
        Ok(holder)
    }

    fn scale(&self, probe: &Probe, holder: &str) -> anyhow::Result<()> {
        self.stage.act(5, "A pod comes and goes while the client keeps asking");
        let before = self.reloads(holder)?;
        for replicas in [4, 3] {
            self.kubectl(&["scale", "deployment", DEPLOYMENT, "--replicas", &replicas.to_string()])?;
            self.balances_over(holder, replicas)?;
            self.on(holder, "ipvsadm -Ln")?;
        }
        let after = self.reloads(holder)?;
        self.stage
            .tell(&format!("keepalived on {holder} was reloaded {before} times before, {after} times now."));
        self.stage.tell(&format!("client: {}", Report::new(probe.so_far())));
        Ok(())
    }

    fn power_cut(&self, probe: &Probe, from: &'static str) -> anyhow::Result<Fall> {
        self.stage.act(6, &format!("{from} loses its power while the client keeps asking"));
        self.stage.tell("Each line is a request: when, how long, and the node and pod that answered.");
        let known = probe.so_far().len();
        let fall = self.stage.follow(probe, SystemTime::now(), || {
            self.lab.wait_for("requests before the power cut", LIMIT, || {
                (probe.so_far().len() >= known + SHOWN_BEFORE).then_some(())
            })?;
            self.stage.event(&format!("{from}: power cut"));
            let at = SystemTime::now();
            self.lab.node(from).kill()?;
            let to = self.holder_but(Some(from))?;
            self.stage.event(&format!("{to} holds the VIP"));
            self.lab.wait_for("steady answers after the power cut", LIMIT, || {
                is_calm(&Report::new(probe.so_far()).after(at)).then_some(())
            })?;
            anyhow::Ok(Fall { at, from, to })
        })?;
        self.stage.typed("client", &format!("curl {URL}"));
        self.curl()?;
        self.on(fall.to, "kvip status")?;
        Ok(fall)
    }

    fn summary(&self, report: &Report, fall: &Fall) {
        self.stage.act(7, "What the client saw");
        self.stage.tell(&format!("before the power cut: {}", report.before(fall.at)));
        self.stage.tell(&format!("from then on: {}", report.after(fall.at)));
        let gap = report.longest_gap().map_or(0.0, |gap| gap.length().as_secs_f64());
        self.stage.tell(&format!(
            "{} requests asked, {} answered. Longest time without an answer: {gap:.2} s, while {VIP} went from {} to {}.",
            report.asked(), report.answered(), fall.from, fall.to
        ));
        self.stage.tell(
            "Adverts are 1 s apart here, because the machines are emulated and slow; kvip's default is 250 ms.\n\
             A dead holder is missed after a little more than three adverts.",
        );
    }
}

/// What the acts are made of.
impl Story {
    /// Shows a command on a node and what it said. An exit status tells findings, which are the node's to tell.
    fn on(&self, node: &str, command: &str) -> anyhow::Result<()> {
        self.shown(node, command, || self.lab.node(node).run(command)).map(drop)
    }

    /// As [`Story::on`], of what must succeed.
    fn done_on(&self, node: &str, command: &str) -> anyhow::Result<()> {
        let output = self.shown(node, command, || self.lab.node(node).run_within(LIMIT, command, b""))?;
        anyhow::ensure!(output.ok(), "{node}: {command}: {output}");
        Ok(())
    }

    fn shown(
        &self,
        place: &str,
        typed: &str,
        run: impl FnOnce() -> anyhow::Result<Output>,
    ) -> anyhow::Result<Output> {
        self.stage.typed(place, typed);
        let output = patiently(typed, run)?;
        self.stage.output(&format!("{}{}", output.stdout, output.stderr));
        Ok(output)
    }

    fn on_host(&self, place: &str, argv: &[&str]) -> anyhow::Result<()> {
        self.shown(place, &self.as_typed(argv), || self.lab.host(argv)).map(drop)
    }

    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let typed = format!("kubectl {}", self.as_typed(arguments));
        self.stage.typed("admin", &typed);
        let output = patiently(&typed, || self.lab.kubectl_within(LIMIT, arguments, ""))?;
        anyhow::ensure!(output.ok(), "{typed}: {output}");
        self.stage.output(&output.stdout);
        Ok(())
    }

    /// The words as somebody types them who is in the source tree.
    fn as_typed(&self, words: &[&str]) -> String {
        words.join(" ").replace(&format!("{}/", self.lab.layout().repo.display()), "")
    }

    /// Waits until kvip has seen all of the cluster: it starts degraded, before its first answer.
    fn in_sync(&self, node: &str) -> anyhow::Result<()> {
        let what = format!("kvip on {node} in sync with the cluster");
        patiently(&what, || {
            self.lab.wait_for(&what, LIMIT, || {
                let text =
                    self.lab.node(node).must("systemctl show kvip --property StatusText --value").ok()?;
                (!text.starts_with("degraded")).then_some(())
            })
        })
    }

    /// Asks as the client until there is an answer, and shows it.
    fn curl(&self) -> anyhow::Result<()> {
        let answer = patiently("until the VIP answers", || {
            self.lab.wait_for("an answer from the VIP", LIMIT, || self.lab.curl(VIP))
        })?;
        self.stage.output(&answer);
        Ok(())
    }

    /// The node that holds the VIP. `but` is not asked: a dead node's silence takes seconds.
    fn holder_but(&self, but: Option<&str>) -> anyhow::Result<&'static str> {
        let script = format!("ip -oneline address show to {VIP} | grep -q {VIP}");
        let holds = |node: &Node| node.run(&script).is_ok_and(|output| output.ok());
        self.lab.wait_for("a node that holds the VIP", LIMIT, || {
            let mut living = self.lab.nodes().filter(|node| Some(node.spec().name) != but);
            living.find(holds).map(|node| node.spec().name)
        })
    }

    /// Waits until new connections go to that many pods.
    fn balances_over(&self, node: &str, pods: usize) -> anyhow::Result<()> {
        let what = format!("{pods} pods in {node}'s IPVS");
        patiently(&what, || {
            self.lab.wait_for(&what, LIMIT, || {
                let table = self.lab.node(node).ipvs().ok()?;
                (in_use(&table) == pods).then_some(())
            })
        })
    }

    /// How often keepalived was reloaded on that node since its boot, as systemd tells it.
    fn reloads(&self, node: &str) -> anyhow::Result<usize> {
        let script = "journalctl --unit keepalived --boot --output cat --no-pager";
        let journal = self.lab.node(node).must(script)?;
        Ok(journal.lines().filter(|line| line.starts_with("Reloaded keepalived")).count())
    }
}

/// The VIP's real servers that get new connections, from `ipvsadm -Sn`.
fn in_use(table: &str) -> usize {
    let virtual_server = format!("-t {VIP}:80 ");
    let lines = table.lines().filter(|line| line.starts_with("-a ") && line.contains(&virtual_server));
    lines.filter(|line| !line.ends_with("-w 0")).count()
}

/// Whether the last requests were all answered.
fn is_calm(report: &Report) -> bool {
    let answered = |sample: &&Sample| matches!(sample.outcome, Outcome::Answered { .. });
    report.samples().iter().rev().take_while(answered).count() >= CALM
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prober::Failure;

    fn samples(outcomes: impl Iterator<Item = Outcome>) -> Report {
        let sample = |(number, outcome)| Sample { connection: 0, start_us: number, end_us: number, outcome };
        Report::new((0..).zip(outcomes).map(sample).collect())
    }

    fn answers(count: usize) -> impl Iterator<Item = Outcome> {
        let answer = Outcome::Answered { node: String::new(), pod: String::new(), body: String::new() };
        std::iter::repeat_n(answer, count)
    }

    #[test]
    fn draining_and_foreign_real_servers_are_not_in_use() {
        let table = "-A -t 10.87.2.50:80 -s wlc\n\
                     -a -t 10.87.2.50:80 -r 10.2.4.10:80 -m -w 1\n\
                     -a -t 10.87.2.50:80 -r 10.2.6.10:80 -m -w 0\n\
                     -a -t 10.87.2.50:8080 -r 10.2.6.10:80 -m -w 1\n";
        assert_eq!(in_use(table), 1);
    }

    #[test]
    fn calm_is_a_run_of_answers_up_to_now() {
        let failure = || std::iter::once(Outcome::Failed(Failure::Timeout));
        assert!(is_calm(&samples(failure().chain(answers(CALM)))));
        assert!(!is_calm(&samples(answers(CALM).chain(failure()))));
        assert!(!is_calm(&samples(answers(CALM - 1))));
    }
}
