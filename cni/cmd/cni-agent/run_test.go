package main

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/cni/netnstest"
	"github.com/ambit-mesh/ambit/cni/probes"
	"github.com/ambit-mesh/ambit/cni/rules"
)

func TestVersion(t *testing.T) {
	for _, args := range [][]string{{"version"}, {"--version"}} {
		var out, err bytes.Buffer
		if e := run(t.Context(), args, &out, &err); e != nil || !strings.HasPrefix(out.String(), "cni-agent ") || err.Len() > 0 {
			t.Errorf("%v: %q, %q, %v", args, out.String(), err.String(), e)
		}
	}
}

func TestBadSettings(t *testing.T) {
	t.Setenv("NODE_NAME", "")
	for want, args := range map[string][]string{
		"NODE_NAME":           {},
		"--log-level":         {"--log-level=loud"},
		"neither json nor":    {"--log-format=xml"},
		"unknown flag":        {"--no-such-flag"},
		"unknown command":     {"tidy"},
		"network namespace: ": {"cleanup", "--host-proc=" + t.TempDir()},
	} {
		err := run(t.Context(), args, &bytes.Buffer{}, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

// TestCleanup runs the command on a node that an agent left in a hurry.
func TestCleanup(t *testing.T) {
	netnstest.Need(t, "iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy", "ipset")
	host, pod := netnstest.New(t), netnstest.New(t)
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	for pid, n := range map[string]string{"1": host.Path(), "7": pod.Path()} {
		for _, err := range []error{
			os.MkdirAll(at("proc", pid, "ns"), 0o755), os.Symlink(n, at("proc", pid, "ns/net")),
			os.WriteFile(at("proc", pid, "cgroup"), []byte("0::/kubepods/pod0d1f2c3b-4a59-4e68-9f77-8a6b5c4d3e2f/c\n"), 0o644),
			os.WriteFile(at("proc", pid, "stat"), []byte("7 (app) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 0 0 1 0 9 0 0"), 0o644),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	files := map[string]string{
		"bin/ambit-cni": "program", "bin/ptp": "program", "run/pluginevent.sock": "", "run/zds.sock": "", "run/ambit-cni-kubeconfig": "secret",
		"state/config": "configuration", "state/config-1": "that of another process",
		// The folder may be one that others use, too.
		"state/other": "not ours", "state/other.d/config": "not ours", "state/config-2/other": "not ours",
		"net.d/10-net.conflist": `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"},{"type":"ambit-cni"}]}`,
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(at(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	k, err := rules.NewKernel(t.Context(), host)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Apply(t.Context(), pod, rules.For(rules.Config{IPv6: true})); err != nil {
		t.Fatal(err)
	}
	p := probes.New(probes.Config{NetNS: host, Backend: k.Host()})
	if err := p.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Put("uid", []netip.Addr{netip.MustParseAddr("10.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		err := run(context.Background(), []string{"cleanup", "--host-proc=" + at("proc"), "--cni-bin-dir=" + at("bin"), "--cni-conf-dir=" + at("net.d"),
			"--run-dir=" + at("run"), "--zds-socket=" + at("run/zds.sock"), "--netns-dir=/run/netns", "--state-dir=" + at("state")}, &bytes.Buffer{}, os.Stderr)
		if err != nil {
			t.Fatal(err)
		}
	}
	if st, err := k.Inspect(t.Context(), pod, rules.For(rules.Config{})); err != nil || st.Leftover {
		t.Errorf("left in the pod: %+v, %v", st, err)
	}
	left := netnstest.Run(t, host, "iptables-nft-save") + netnstest.Run(t, host, "ip6tables-nft-save") + netnstest.Run(t, host, "ipset list -name")
	if strings.Contains(strings.ToLower(left), "istio") {
		t.Errorf("left on the host:\n%s", left)
	}
	for name := range files {
		_, err := os.Stat(at(name))
		stays := slices.Contains([]string{"bin/ptp", "net.d/10-net.conflist", "state/other", "state/other.d/config", "state/config-2/other"}, name)
		if stays != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(at("state")); err != nil {
		t.Errorf("the folder of the state, which is mounted, is to stay: %v", err)
	}
	if text, err := os.ReadFile(at("net.d/10-net.conflist")); err != nil || strings.Contains(string(text), "ambit") || !strings.Contains(string(text), "ptp") {
		t.Errorf("configuration: %s, %v", text, err)
	}
}
