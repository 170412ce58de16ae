package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ambit-mesh/ambit/e2e/lab"
)

// releaseBefore is the commit of the release before this one: its proxies hand no sockets over, and its agent keeps none.
const releaseBefore = "0726702a4b1ba2d17da7738ae59c391497badb2e"

// olderProxy builds ztunnel of the release before, once for all runs, below the repository's .cache.
func olderProxy(t *testing.T) string {
	t.Helper()
	run := func(dir, name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	root, err := run(".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		t.Skipf("skipped: not in a git repository, so the release before cannot be built: %v", err)
	}
	binary := filepath.Join(root, ".cache", "releases", releaseBefore, "ztunnel")
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	if _, err := run(root, "git", "cat-file", "-e", releaseBefore+"^{commit}"); err != nil {
		t.Skipf("skipped: commit %s of the release before is not in this clone (git fetch --unshallow): %v", releaseBefore, err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Dir(binary), 0o755))
	source, err := os.MkdirTemp(filepath.Dir(binary), "source-")
	must(err)
	defer os.RemoveAll(source)
	tree := filepath.Join(source, "tree.tar")
	_, err = run(root, "git", "archive", "--output="+tree, releaseBefore)
	must(err)
	_, err = run(source, "tar", "-xf", tree)
	must(err)
	built := filepath.Join(source, "built")
	_, err = run(source, "go", "build", "-o", built, "./ztunnel/cmd/ztunnel")
	must(err)
	must(os.Rename(built, binary))
	return binary
}

// of starts a proxy of a given build, and waits until it is ready.
func (r *relay) of(binary string) *lab.Proxy {
	r.w.t.Helper()
	n := r.nodes[r.next%2]
	r.next++
	p, err := n.StartProxy(binary)
	r.w.must(err)
	r.w.proxies = append(r.w.proxies, p)
	ctx, cancel := context.WithTimeout(r.w.ctx, patience)
	defer cancel()
	r.w.must(p.WaitReady(ctx))
	return p
}

// TestReleases upgrades and downgrades a node's parts one by one, between this release and the one before, under load: no new
// connection fails, and none is left behind by a part that does not know what the other offers.
func TestReleases(t *testing.T) {
	w := newWorld(t)
	older, newer := olderProxy(t), binaries[0]
	n1, err := w.AddOldNode("node1")
	w.must(err)
	n2, err := w.AddOldNode("node2")
	w.must(err)
	r1, r2 := w.relay(n1), w.relay(n2)
	r1.next, r2.next = 0, 0
	p1, p2 := r1.of(older), r2.of(older)
	client, server, plain := w.captured(n1, "client"), w.captured(n2, "server"), w.pod(n1, "plain")
	w.listen(server, ":8080", echo)
	w.listen(plain, ":8080", echo)
	w.settle()
	const perSecond, perStep = 50, 25
	to := addr(server, false, 8080)
	loads := []*load{
		startLoad(client, to, perSecond), startLoad(plain, to, perSecond), startLoad(server, addr(plain, false, 8080), perSecond),
	}
	for _, l := range loads {
		defer l.end(t)
	}
	roll := func(r *relay, p **lab.Proxy, binary string) func() {
		return func() {
			old := *p
			*p = r.of(binary)
			w.must(old.Signal(syscall.SIGTERM))
			ctx, cancel := context.WithTimeout(w.ctx, patience)
			defer cancel()
			if err := old.Wait(ctx); err != nil {
				t.Errorf("old proxy: %v\n%s", err, old.LogTail())
			}
		}
	}
	kept := func() {
		w.eventually("the agent keeps the pod's sockets", func() error {
			if n := n2.Depot.Len(); n != 3 {
				return fmt.Errorf("%d sockets, want 3", n)
			}
			return nil
		})
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"the server's proxy is upgraded before its agent", roll(r2, &p2, newer)},
		{"and rolled, of the same release", roll(r2, &p2, newer)},
		{"the agent is upgraded", func() { w.must(n2.StartDepot()); kept() }},
		{"the proxy is rolled again", func() { roll(r2, &p2, newer)(); kept() }},
		{"the client's proxy is upgraded", roll(r1, &p1, newer)},
		{"the server's proxy is downgraded", roll(r2, &p2, older)},
		{"and rolled, of the same release", roll(r2, &p2, older)},
		{"upgraded again", func() { roll(r2, &p2, newer)(); kept() }},
		{"the agent is downgraded", n2.StopDepot},
		{"the proxy is downgraded, too", roll(r2, &p2, older)},
		{"and the client's", roll(r1, &p1, older)},
	} {
		step.do()
		before := make([]int64, len(loads))
		for i, l := range loads {
			before[i] = l.tried.Load()
		}
		for i, l := range loads {
			w.eventually("the load goes on", func() error {
				if l.tried.Load() < before[i]+perStep {
					return errors.New("too few connections")
				}
				return nil
			})
			if l.failed.Load() > 0 {
				t.Fatalf("after the step %q: see below", step.name)
			}
		}
	}
}
