package netns

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/cni/rules"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// memory mounts a tmpfs for keys.
func (w *world) memory() string {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "run")
	w.must(os.Mkdir(dir, 0o700))
	w.must(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"))
	w.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			w.t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return filepath.Join(dir, "keys")
}

// cutOff takes the control plane away from nodes.
func (w *world) cutOff(nodes ...*lab.Node) {
	w.t.Helper()
	for _, n := range nodes {
		w.must(n.Do(func() error {
			return iptables("-I", "OUTPUT", "-p", "tcp", "--dport", "15012", "-j", "REJECT", "--reject-with", "tcp-reset")
		}))
	}
}

// TestKillWithoutControlPlane kills a node's only proxy while the control plane is away. The next one serves from what was
// saved: pods that there were, and one that comes now, of which the control plane has told before. It says how old that is.
func TestKillWithoutControlPlane(t *testing.T) {
	w := newWorld(t)
	keys := w.memory()
	env := []string{"AMBIT_STATE_DIR=" + t.TempDir(), "AMBIT_KEY_DIR=" + keys}
	n1, n2 := w.node("node1"), w.node("node2", env...)
	r := w.relay(n2)
	client, server := w.captured(n1, "client"), w.captured(n2, "server")
	late, err := n2.AddPod("late")
	w.must(err)
	w.Control.SetAddresses(late.Address(true))
	for _, p := range []*lab.Pod{client, server, late} {
		w.listen(p, ":8080", echo)
	}
	w.settle()
	w.expect(client, addr(server, false, 8080), client.IPv4)
	w.eventually("the certificates of all of the node's pods are kept", func() error {
		files, err := os.ReadDir(keys)
		if err == nil && len(files) != 2 {
			err = fmt.Errorf("%d files", len(files))
		}
		return err
	})
	marker := []byte("marker-1") // settle's, the last that was told
	state := strings.TrimPrefix(env[0], "AMBIT_STATE_DIR=")
	w.eventually("the configuration is saved", func() error {
		b, err := os.ReadFile(filepath.Join(state, "config"))
		if err == nil && !strings.Contains(string(b), string(marker)) {
			err = errors.New("it is not complete")
		}
		return err
	})
	w.cutOff(n1, r.nodes[0], r.nodes[1])
	old := w.proxies[1]
	old.Kill()
	p := r.start(env...)
	w.logged(p, "serving from the configuration that was saved", "age=")
	both := func(pods ...*lab.Pod) {
		t.Helper()
		for _, pod := range pods {
			w.expect(client, addr(pod, false, 8080), client.IPv4)
			w.expect(pod, addr(client, false, 8080), pod.IPv4)
		}
	}
	both(server)
	w.must(w.Kernel.Apply(w.ctx, late.Handle(), rules.For(rules.Config{IPv6: true})))
	w.must(late.Offer(w.ctx))
	both(server, late)
	code, body, err := p.Get(w.ctx, 15021, "/healthz/ready")
	if err != nil || code != http.StatusOK || !strings.Contains(body, "the control plane is away: serving from a configuration of") {
		t.Errorf("readiness: %d %q, %v; want it to tell the configuration's age", code, body, err)
	}
	if got := w.series(p, "ambit_configuration_age_seconds"); got == "" || got == "0" {
		t.Errorf("metric of the configuration's age is %q", got)
	}
	if x := w.dump(p)["xds"].(map[string]any); x["fromDisk"] != true || x["age"] == nil {
		t.Errorf("config_dump says of discovery %v", x)
	}
	// As after a power cut: what was in memory is gone. Without a CA nothing goes in or out, in clear least of all.
	p.Kill()
	w.must(os.RemoveAll(keys))
	p = r.start(env...)
	var calls sync.WaitGroup // each lasts as long as a certificate is waited for
	calls.Go(func() { w.refused(client, addr(server, false, 8080)) })
	calls.Go(func() { w.refused(server, addr(client, false, 8080)) })
	calls.Wait()
	w.logged(p, "no certificate")
}

// TestKeysNeedMemory gives a proxy a folder on a disk for its keys: it writes none.
func TestKeysNeedMemory(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "keys")
	var st unix.Statfs_t
	w.must(unix.Statfs(filepath.Dir(dir), &st))
	if st.Type == unix.TMPFS_MAGIC {
		t.Skip("skipped: the folder for temporary files is in memory itself")
	}
	n := w.node("node1", "AMBIT_KEY_DIR="+dir)
	client, server := w.captured(n, "client"), w.captured(n, "server")
	w.listen(server, ":8080", echo)
	w.settle()
	w.expect(client, addr(server, false, 8080), client.IPv4)
	w.logged(w.proxies[0], "not on a tmpfs")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) > 0 {
		t.Errorf("the folder has %v, %v", files, err)
	}
}
