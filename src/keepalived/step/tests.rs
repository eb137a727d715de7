//! Each state of disk and unit, and the step that follows.

use std::time::Duration;

use super::super::{Instance, MARKER, render, render_fragment};
use super::*;
use crate::model::{Family, Vrid};

const BUILD: Build = Build { dbus: false };

fn config(vips: u32) -> Config {
    let vips = (0..vips).map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
    let instance = Instance {
        vrid: Vrid::new(50).unwrap(),
        family: Family::V4,
        interface: "eth0".into(),
        priority: 190,
        advert: Duration::from_secs(1),
        gone_after: Duration::from_secs(60),
        unicast: None,
        vips,
    };
    Config { router_id: "n".into(), gone_after: Duration::from_secs(60), instances: vec![instance] }
}

fn none() -> Config {
    Config { instances: vec![], ..config(0) }
}

fn text(config: &Config) -> String {
    render(config, &Paths::default(), BUILD)
}

fn view(main: Option<String>, loaded: Option<String>, active: &str) -> View {
    let unit =
        UnitState { load: "loaded".into(), active: active.into(), main_pid: 7, ..UnitState::default() };
    View { disk: Disk { main, loaded, ..Disk::default() }, unit, stopping: false, build: BUILD }
}

fn running(config: &Config) -> View {
    view(Some(text(config)), Some(text(config)), "active")
}

fn write(config: &Config, act: Option<Act>) -> Step {
    Step::Write { place: Place::Main, text: text(config), act }
}

#[track_caller]
fn check(view: &View, want: &Config, step: &Step) {
    assert_eq!(next_step(view, want, &Paths::default()), *step);
}

#[test]
fn a_fresh_host_gets_the_whole_file_and_a_start() {
    check(&view(None, None, "inactive"), &config(250), &write(&config(250), Some(Act::Start)));
    check(&view(Some(String::new()), None, "failed"), &config(2), &write(&config(2), Some(Act::Start)));
}

#[test]
fn what_runs_as_wanted_is_left_alone() {
    check(&running(&config(2)), &config(2), &Step::Nothing);
}

#[test]
fn a_file_that_keepalived_has_not_read_is_reloaded() {
    let unread = view(Some(text(&config(3))), Some(text(&config(2))), "active");
    check(&unread, &config(3), &Step::Act(Act::Reload));
    let unknown = view(Some(text(&config(3))), None, "active");
    check(&unknown, &config(3), &Step::Act(Act::Reload));
    let down = view(Some(text(&config(3))), Some(text(&config(3))), "failed");
    check(&down, &config(3), &Step::Act(Act::Start));
}

#[test]
fn vips_join_a_running_keepalived_in_chunks_and_leave_at_once() {
    check(&running(&config(0)), &config(250), &write(&config(100), Some(Act::Reload)));
    check(&running(&config(100)), &config(250), &write(&config(200), Some(Act::Reload)));
    check(&running(&config(200)), &config(250), &write(&config(250), Some(Act::Reload)));
    check(&running(&config(250)), &config(0), &write(&config(0), Some(Act::Reload)));
}

#[test]
fn a_vip_leaves_one_group_before_it_joins_another() {
    let with = |of_50: u32, of_60: &[u32]| {
        let mut config = config(of_50);
        let mut other = config.instances[0].clone();
        other.vrid = Vrid::new(60).unwrap();
        other.vips = of_60.iter().map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes())).collect();
        config.instances.push(other);
        config
    };
    check(&running(&with(2, &[7])), &with(1, &[1, 7]), &write(&with(1, &[7]), Some(Act::Reload)));
    check(&running(&with(1, &[7])), &with(1, &[1, 7]), &write(&with(1, &[1, 7]), Some(Act::Reload)));
    check(&running(&with(1, &[1, 7])), &with(2, &[7]), &write(&with(1, &[7]), Some(Act::Reload)));
    check(&running(&with(1, &[7])), &with(2, &[7]), &write(&with(2, &[7]), Some(Act::Reload)));
}

#[test]
fn a_node_that_takes_no_part_has_no_instances() {
    check(&view(None, None, "inactive"), &none(), &Step::Idle);
    check(&running(&config(2)), &none(), &write(&none(), Some(Act::Reload)));
    check(&running(&none()), &none(), &Step::Remove(Place::Main));
    check(&view(Some(text(&config(2))), None, "inactive"), &none(), &Step::Remove(Place::Main));
    check(&view(Some(text(&none())), None, "inactive"), &none(), &Step::Remove(Place::Main));
    assert!(text(&none()).starts_with(MARKER));
}

#[test]
fn a_stop_by_hand_is_respected() {
    let stopped = View { stopping: true, ..view(Some(text(&config(2))), None, "inactive") };
    check(&stopped, &config(2), &Step::Wait(Obstacle::Stopped));
    check(&stopped, &config(3), &write(&config(3), None));
    check(&stopped, &none(), &Step::Remove(Place::Main));
    let stopping = view(Some(text(&config(2))), None, "deactivating");
    check(&stopping, &config(2), &Step::Wait(Obstacle::Stopping));
}

#[test]
fn a_unit_that_cannot_run() {
    let mut masked = view(None, None, "inactive");
    masked.unit.load = "masked".into();
    check(&masked, &config(1), &Step::Wait(Obstacle::Unit(UnitError::Masked)));
    masked.unit.load = "not-found".into();
    check(&masked, &config(1), &Step::Wait(Obstacle::Unit(UnitError::Absent)));
}

#[test]
fn a_foreign_file_is_never_written() {
    let foreign = "vrrp_instance A {\n}\n".to_owned();
    let fragment = |included| Place::Fragment { included };
    let want = config(2);
    let text = render_fragment(&want, &Paths::default());
    let mut view = view(Some(foreign.clone()), None, "active");
    check(&view, &want, &Step::Write { place: fragment(false), text: text.clone(), act: None });
    view.disk.fragment = Some(text.clone());
    check(&view, &want, &Step::Wait(Obstacle::NotIncluded));
    view.disk.main = Some(format!("{foreign}include conf.d/kvip.conf\n"));
    check(&view, &want, &Step::Act(Act::Reload));
    view.disk.loaded = Some(text);
    check(&view, &want, &Step::Nothing);
    view.disk.fragment = Some(foreign);
    check(&view, &want, &Step::Wait(Obstacle::NotOurs));
}
