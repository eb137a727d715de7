//! A folder as admins and editors change it, on virtual time.

use std::time::Duration;

use super::*;
use crate::config::Settings;
use crate::snapshot::feed;

/// A folder that is followed. Time runs on by itself whenever all tasks wait.
struct Fixture {
    dir: tempfile::TempDir,
    handles: Handles,
}

fn follow_folder(files: &[(&str, &str)]) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let cluster = Settings::standard(Vec::new()).cluster;
    let handles = feed::spawn(Cluster { manifests: Some(dir.path().into()), ..cluster });
    Fixture { dir, handles }
}

fn service(name: &str) -> String {
    format!("kind: Service\nmetadata: {{name: {name}}}\n---\n")
}

impl Fixture {
    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// Waits until the newest snapshot is as `is` says, and returns it.
    async fn snapshot(&mut self, is: impl Fn(&Snapshot) -> bool) -> Update {
        let there = |update: &Option<Update>| update.as_ref().is_some_and(|u| is(&u.snapshot));
        let found = timeout(Duration::from_mins(1), self.handles.snapshots.wait_for(there)).await;
        found.expect("the snapshot in time").unwrap().clone().unwrap()
    }

    /// Waits until the newest snapshot has these Services.
    async fn services(&mut self, names: &[&str]) -> Update {
        self.snapshot(|s| s.services.keys().map(|key| key.name.as_str()).eq(names.iter().copied())).await
    }

    /// Lets some looks go by, and tells whether there was a new snapshot.
    async fn is_news_after_looks(&mut self) -> bool {
        timeout(EVERY * 5, self.handles.snapshots.changed()).await.is_ok()
    }
}

fn texts(snapshot: &Snapshot) -> Vec<String> {
    snapshot.skipped.values().flatten().map(|finding| finding.text.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn files_come_change_and_go() {
    let mut fixture = follow_folder(&[("a.yaml", &service("web"))]);
    let first = fixture.services(&["web"]).await;
    assert_eq!((first.lists, first.snapshot.cluster.as_deref()), (1, None));
    assert!(fixture.handles.contact.borrow().last_ok.is_some());
    assert!(!fixture.is_news_after_looks().await, "nothing changed");
    fixture.write("b.yaml", &service("shop"));
    assert_eq!(fixture.services(&["shop", "web"]).await.lists, 2);
    fixture.write("b.yaml", &service("other-shop"));
    fixture.services(&["other-shop", "web"]).await;
    fs::remove_file(fixture.dir.path().join("a.yaml")).unwrap();
    fixture.services(&["other-shop"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_cannot_be_read_keeps_what_it_said_and_others_go_on() {
    let mut fixture = follow_folder(&[("a.yaml", &service("web")), ("b.yaml", &service("shop"))]);
    fixture.services(&["shop", "web"]).await;
    fixture.write("a.yaml", "kind: Service\nmetadata:\n  name: [half");
    fixture.write("b.yaml", &service("new-shop"));
    let update = fixture.snapshot(|s| !s.skipped.is_empty() && s.services.len() == 2).await;
    let update = if update.snapshot.services.keys().any(|key| key.name == "new-shop") {
        update
    } else {
        fixture.services(&["new-shop", "web"]).await
    };
    let said = texts(&update.snapshot);
    assert!(said[0].contains("not YAML or JSON") && said[0].ends_with("said before stays"), "{said:?}");
    fixture.write("a.yaml", &service("web-2"));
    let update = fixture.services(&["new-shop", "web-2"]).await;
    assert_eq!(texts(&update.snapshot), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_out_by_itself_keeps_nothing_else_as_it_was() {
    let map = "kind: ConfigMap\nmetadata: {name: vip-configmap}\ndata:\n";
    let before = format!("{map}  10.87.2.50: default/web\n  10.87.2.52: default/web\n");
    let mut fixture = follow_folder(&[("vips.yaml", &before)]);
    let vips = |s: &Snapshot| s.vip_map.iter().flatten().map(|(vip, _)| vip.clone()).collect::<Vec<_>>();
    fixture.snapshot(|s| vips(s) == ["10.87.2.50", "10.87.2.52"]).await;
    let slips = "---\nkind: Serivce\nmetadata: {name: web}\n---\n\
        {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: web}, spec: {template: {}}}\n";
    fixture.write(
        "vips.yaml",
        &format!("{map}  10.87.2.50: default/web\n  10.87.2.51:\n  10.87.2.53: ''\n{slips}"),
    );
    let update = fixture.snapshot(|s| vips(s) == ["10.87.2.50", "10.87.2.53"]).await;
    let said = texts(&update.snapshot);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().any(|text| text.contains("key \"10.87.2.51\" is empty")), "{said:?}");
    assert!(said.iter().any(|text| text.contains("did you mean Service?")), "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn an_object_in_two_files_is_told() {
    let mut fixture = follow_folder(&[("a.yaml", &service("web")), ("b.yaml", &service("web"))]);
    let said = texts(&fixture.services(&["web"]).await.snapshot);
    assert!(said.len() == 1 && said[0].starts_with("Service default/web is written twice: "), "{said:?}");
    fixture.write("b.yaml", &service("shop"));
    assert_eq!(texts(&fixture.services(&["shop", "web"]).await.snapshot), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_never_could_be_read_gives_what_can_be() {
    let mut fixture = follow_folder(&[("a.yaml", &(service("web") + "kind: Node\n"))]);
    let update = fixture.services(&["web"]).await;
    assert_eq!(texts(&update.snapshot), ["Node without metadata.name"]);
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_read_is_told_and_the_state_stays() {
    let mut fixture = follow_folder(&[("a.yaml", &service("web"))]);
    fixture.services(&["web"]).await;
    let path = fixture.dir.path().to_owned();
    let away = path.with_extension("away");
    fs::rename(&path, &away).unwrap();
    let failed = |contact: &Contact| contact.problem.is_some();
    let contact =
        timeout(EVERY * 5, fixture.handles.contact.wait_for(failed)).await.unwrap().unwrap().clone();
    let text = contact.problem.unwrap().to_string();
    assert!(
        text.starts_with("cannot read the folder of manifests") && text.contains("No such file"),
        "{text}"
    );
    assert!(!fixture.handles.snapshots.has_changed().unwrap());
    fs::rename(&away, &path).unwrap();
    let well = |contact: &Contact| contact.problem.is_none();
    timeout(EVERY * 5, fixture.handles.contact.wait_for(well)).await.unwrap().unwrap();
    assert!(!fixture.handles.snapshots.has_changed().unwrap(), "the same again");
}

/// What a look finds, with the folder changed between looks and no task.
fn looks(steps: &[&dyn Fn(&Path)]) -> Vec<Option<Vec<String>>> {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings::standard(Vec::new()).cluster;
    let mut folder = Folder { path: dir.path().into(), settings, files: None };
    let mut look = |step: &&dyn Fn(&Path)| {
        step(&dir.path().join("a.yaml"));
        let names = |s: Snapshot| s.services.keys().map(|key| key.name.clone()).collect();
        folder.look().unwrap().map(names)
    };
    steps.iter().map(&mut look).collect()
}

fn write(names: &[&str]) -> impl Fn(&Path) + use<> {
    let text: String = names.iter().map(|name| service(name)).collect();
    move |path| fs::write(path, &text).unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn a_file_is_read_at_the_first_look_and_then_when_it_stands_still() {
    let (all, half, more) = (write(&["a", "b"]), write(&["a"]), write(&["a", "b", "c"]));
    let nothing = |_: &Path| {};
    let found = looks(&[&all, &nothing, &half, &more, &nothing, &nothing]);
    assert_eq!(found, [Some(names(&["a", "b"])), None, None, None, Some(names(&["a", "b", "c"])), None]);
}

#[test]
fn a_file_that_is_away_for_one_look_is_not_gone() {
    let (all, nothing) = (write(&["a"]), |_: &Path| {});
    let away = |path: &Path| fs::rename(path, path.with_extension("yaml~")).unwrap();
    let back = |path: &Path| fs::rename(path.with_extension("yaml~"), path).unwrap();
    let found = looks(&[&all, &away, &back, &nothing]);
    assert_eq!(found[1], None);
    assert!(found[2..].iter().flatten().all(|found| *found == ["a"]), "{found:?}");
    assert_eq!(
        looks(&[&all, &away, &nothing, &nothing]),
        [Some(names(&["a"])), None, Some(names(&[])), None]
    );
}

#[test]
fn a_file_that_never_stands_still_is_read_all_the_same() {
    let versions: Vec<_> = (0..=RESTLESS).map(|n| write(&[&"x".repeat(n as usize + 1)])).collect();
    let steps: Vec<&dyn Fn(&Path)> = versions.iter().map(|step| step as &dyn Fn(&Path)).collect();
    let found = looks(&steps);
    assert!(found[0].is_some() && found.iter().skip(1).flatten().count() == 1, "{found:?}");
}

#[test]
fn what_is_no_file_is_a_finding() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("folder.yaml")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at-all", dir.path().join("link.yaml")).unwrap();
    let settings = Settings::standard(Vec::new()).cluster;
    let mut folder = Folder { path: dir.path().into(), settings, files: None };
    let said = texts(&folder.look().unwrap().unwrap());
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("no regular file") && said[1].contains("No such file"), "{said:?}");
}
