package install

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/cni/agentapi"
)

const (
	list   = `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp","mtu":1500.0,"ipam":{"type":"host-local"}},{"type":"portmap"}]}`
	single = `{"cniVersion":"0.4.0","name":"net","type":"bridge"}`
)

var entry = agentapi.Entry{Type: "ambit-cni", RunDir: "/var/run/istio-cni", Kubeconfig: "/var/run/istio-cni/kc", MeshNamespace: "istio-system", ExcludeNamespaces: []string{"kube-system"}}

func node(t *testing.T, files map[string]string) *Installer {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"net.d", "bin"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "ambit-cni"), "#!program")
	for name, content := range files {
		write(t, filepath.Join(dir, "net.d", name), content)
	}
	return New(Config{ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Binary: filepath.Join(dir, "ambit-cni"),
		Entry: entry, Settle: 10 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// types are the plugins of a list, in order.
func types(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var l struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(text, &l); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	out := []string{}
	for _, p := range l.Plugins {
		out = append(out, p.Type)
	}
	return out
}

func TestEnsureAndUninstall(t *testing.T) {
	stale := strings.Replace(list, `{"type":"portmap"}`, `{"type":"ambit-cni","cni_agent_run_dir":"/old"},{"type":"portmap"}`, 1)
	for name, test := range map[string]struct {
		files       map[string]string
		in          string // the file that has the entry afterwards
		types, left []string
		files2      []string // what is there afterwards
	}{
		"a list":                   {files: map[string]string{"10-net.conflist": list}, in: "10-net.conflist", types: []string{"ptp", "portmap", "ambit-cni"}, left: []string{"ptp", "portmap"}, files2: []string{"10-net.conflist"}},
		"a single one":             {files: map[string]string{"10-net.conf": single}, in: "10-net.conflist", types: []string{"bridge", "ambit-cni"}, left: []string{"bridge"}, files2: []string{"10-net.conflist"}},
		"a stale entry":            {files: map[string]string{"10-net.conflist": stale}, in: "10-net.conflist", types: []string{"ptp", "portmap", "ambit-cni"}, left: []string{"ptp", "portmap"}, files2: []string{"10-net.conflist"}},
		"the first valid one":      {files: map[string]string{"05-bad.conflist": "{", "06-empty.conflist": `{"name":"x","plugins":[]}`, "07-no-type.conf": "{}", "08-no.txt": list, "10-net.conflist": list, "20-other.conflist": list}, in: "10-net.conflist", types: []string{"ptp", "portmap", "ambit-cni"}, left: []string{"ptp", "portmap"}, files2: []string{"05-bad.conflist", "06-empty.conflist", "07-no-type.conf", "08-no.txt", "10-net.conflist", "20-other.conflist"}},
		"chained behind by others": {files: map[string]string{"10-net.conflist": strings.Replace(list, `{"type":"portmap"}`, `{"type":"istio-cni"}`, 1)}, in: "10-net.conflist", types: []string{"ptp", "istio-cni", "ambit-cni"}, left: []string{"ptp", "istio-cni"}, files2: []string{"10-net.conflist"}},
	} {
		t.Run(name, func(t *testing.T) {
			i := node(t, test.files)
			for round := range 3 {
				changed, err := i.ensure()
				if err != nil || changed != (round == 0) {
					t.Fatalf("round %d: changed %v, %v", round, changed, err)
				}
			}
			path := filepath.Join(i.cfg.ConfDir, test.in)
			if diff := cmp.Diff(test.types, types(t, path)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.files2, names(t, i.cfg.ConfDir)); diff != "" {
				t.Error(diff)
			}
			if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
				t.Errorf("mode %v, %v", st.Mode(), err)
			}
			if diff := cmp.Diff([]string{"ambit-cni"}, names(t, i.cfg.BinDir)); diff != "" {
				t.Error(diff)
			}
			for range 2 {
				if err := i.Uninstall(); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(test.left, types(t, path)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{}, names(t, i.cfg.BinDir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestOthersStayAsWritten: numbers and unknown fields of other plugins are not ours to change.
func TestOthersStayAsWritten(t *testing.T) {
	f, err := parse("x.conflist", []byte(list))
	if err != nil {
		t.Fatal(err)
	}
	text, err := f.with(entry)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "1500.0") {
		t.Errorf("changed:\n%s", text)
	}
}

func TestNothingToChain(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"empty folder": {}, "only ourselves": {"10-net.conflist": `{"name":"x","plugins":[{"type":"ambit-cni"}]}`},
	} {
		if _, err := node(t, files).ensure(); !errors.Is(err, errNone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("a.conflist", []byte(list))
	f.Add("a.conf", []byte(single))
	f.Add("a.conflist", []byte(`{"plugins":null}`))
	f.Add("a.conf", []byte(`null`))
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		c, err := parse(name, text)
		if err != nil {
			return
		}
		out, err := c.with(entry)
		if err != nil {
			return
		}
		again, err := parse(c.target(), out)
		if err != nil || !again.has(entry) && len(c.others(entry.Type)) > 0 {
			t.Errorf("%q became %q: %v", text, out, err)
		}
	})
}

func run(t *testing.T, r func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); !condition(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// TestRunRepairs: every way in which others may undo the installation, noticed by the watch alone.
func TestRunRepairs(t *testing.T) {
	i := node(t, nil)
	run(t, i.Run)
	conf := filepath.Join(i.cfg.ConfDir, "10-net.conflist")
	installed := func(path string) func() bool {
		return func() bool {
			text, err := os.ReadFile(path)
			return err == nil && strings.Contains(string(text), "ambit-cni") && i.Installed()
		}
	}
	eventually(t, "it waits for the network", func() bool { _, err := os.Stat(filepath.Join(i.cfg.BinDir, "ambit-cni")); return err == nil })
	if i.Installed() {
		t.Error("installed into nothing")
	}
	write(t, conf, list)
	eventually(t, "the network's configuration came", installed(conf))
	write(t, conf, list)
	eventually(t, "it was written anew", installed(conf))
	if err := os.Remove(conf); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool { return !i.Installed() })
	write(t, conf, list)
	eventually(t, "it came back", installed(conf))
	earlier := filepath.Join(i.cfg.ConfDir, "00-net.conflist")
	write(t, earlier, list)
	eventually(t, "another one comes first", installed(earlier))
	binary := filepath.Join(i.cfg.BinDir, "ambit-cni")
	if err := os.Remove(binary); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the binary was deleted", func() bool { _, err := os.Stat(binary); return err == nil })
	write(t, binary, "another version")
	eventually(t, "the binary was replaced", func() bool { b, _ := os.ReadFile(binary); return string(b) == "#!program" })
	if err := i.Uninstall(); err != nil {
		t.Fatal(err)
	}
}

func TestCredential(t *testing.T) {
	client := fake.NewClientset()
	tokens := make(chan string, 100)
	var life atomic.Int64
	life.Store(int64(time.Hour))
	n := 0
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "token" || a.GetNamespace() != "istio-system" {
			return false, nil, nil
		}
		n++
		if n == 1 {
			return true, nil, errors.New("API away")
		}
		req := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		if req.Spec.BoundObjectRef != nil {
			t.Error("bound to an object")
		}
		token := "token-" + string(rune('a'+n))
		tokens <- token
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(time.Now().Add(time.Duration(life.Load())))}}, nil
	})
	path := filepath.Join(t.TempDir(), "kubeconfig")
	run(t, Credential{Client: client, Cluster: &rest.Config{Host: "https://[fd00::1]:443", TLSClientConfig: rest.TLSClientConfig{CAData: []byte("ca")}},
		Namespace: "istio-system", ServiceAccount: "ambit-cni-plugin", Path: path, Logger: slog.New(slog.DiscardHandler), Check: 5 * time.Millisecond}.Run)
	token := <-tokens
	var c *rest.Config
	eventually(t, "file", func() (ok bool) {
		text, err := os.ReadFile(path)
		if err == nil {
			c, err = clientcmd.RESTConfigFromKubeConfig(text)
		}
		return err == nil
	})
	if c.Host != "https://[fd00::1]:443" || c.BearerToken != token || string(c.CAData) != "ca" {
		t.Errorf("wrote %+v", c)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	life.Store(int64(20 * time.Millisecond)) // of those that follow
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written again when deleted", func() bool { _, err := os.Stat(path); return !errors.Is(err, fs.ErrNotExist) })
	<-tokens
	<-tokens // renewed at half of its life
}
