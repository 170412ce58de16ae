package resolver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// agent is the resolv.conf of an agent's pod as kubelet writes it, host the node's.
const (
	agent = "search istio-system.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"
	host  = "# of the node\nnameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch corp.example\n"
)

func TestPredict(t *testing.T) {
	node := NewNode(Parse([]byte(agent)), "istio-system", Parse([]byte(host)))
	three := "3"
	for name, tc := range map[string]struct {
		node Node
		wish Wish
		want *Settings
	}{
		"cluster first": {node, Wish{Policy: corev1.DNSClusterFirst}, &Settings{
			[]string{"10.96.0.10"}, []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"}, 5}},
		"no policy": {node, Wish{}, &Settings{
			[]string{"10.96.0.10"}, []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"}, 5}},
		"the node's": {node, Wish{Policy: corev1.DNSDefault}, &Settings{
			[]string{"192.0.2.53", "192.0.2.54"}, []string{"corp.example"}, 1}},
		"none": {node, Wish{Policy: corev1.DNSNone, Config: &corev1.PodDNSConfig{
			Nameservers: []string{"198.51.100.1"}, Searches: []string{"own.example"},
			Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &three}, {Name: "edns0"}}}}, &Settings{
			[]string{"198.51.100.1"}, []string{"own.example"}, 3}},
		"cluster first and more": {node, Wish{Policy: corev1.DNSClusterFirst, Config: &corev1.PodDNSConfig{
			Nameservers: []string{"10.96.0.10", "198.51.100.1"}, Searches: []string{"own.example"}}}, &Settings{
			[]string{"10.96.0.10", "198.51.100.1"}, []string{"shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "own.example"}, 5}},
		"an agent that does not use the cluster's DNS": {NewNode(Parse([]byte(host)), "istio-system", Settings{}), Wish{}, nil},
		"none, on a node that is not known":            {Node{}, Wish{Policy: corev1.DNSNone}, &Settings{NDots: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := tc.node.Predict("shop", tc.wish)
			if ok != (tc.want != nil) {
				t.Fatalf("known: %v", ok)
			}
			if ok {
				if diff := cmp.Diff(fmt.Sprint(*tc.want), fmt.Sprint(got)); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
	if node.Cluster.Search[0] != "istio-system.svc.cluster.local" {
		t.Error("the node's own settings were changed")
	}
}

func TestBounds(t *testing.T) {
	text := "options ndots:99\nsearch " + strings.Repeat("a.example ", 100) + "\n" + strings.Repeat("nameserver 192.0.2.1\n", 9)
	s := Parse([]byte(text))
	if len(s.Search) != maxSearch || len(s.Servers) != maxServers || s.NDots != maxNDots {
		t.Errorf("%d search domains, %d servers, ndots %d", len(s.Search), len(s.Servers), s.NDots)
	}
	s = Parse([]byte("search " + strings.Repeat(strings.Repeat("a", 200)+" ", 20)))
	if len(s.Search) != maxBytes/201 {
		t.Errorf("%d search domains of 200 bytes", len(s.Search))
	}
}

// TestRead: a container's file is read, and neither a link out of the container nor a pipe harms the reader.
func TestRead(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte(host), 0o600); err != nil {
		t.Fatal(err)
	}
	root := func(make func(path string) error) string {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := make(filepath.Join(dir, "etc/resolv.conf")); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	good := root(func(path string) error { return os.WriteFile(path, []byte(host), 0o644) })
	if s, err := Read(good); err != nil || len(s.Servers) != 2 {
		t.Errorf("%v, %v", s, err)
	}
	for name, dir := range map[string]string{
		"a link out of the container": root(func(path string) error { return os.Symlink(outside, path) }),
		"dots out of the container":   root(func(path string) error { return os.Symlink("../../../../../../.."+outside, path) }),
		"a directory":                 root(func(path string) error { return os.Mkdir(path, 0o755) }),
		"a pipe":                      root(mkfifo),
	} {
		if s, err := Read(dir); err == nil {
			t.Errorf("%s: %v", name, s)
		}
	}
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o644) }
