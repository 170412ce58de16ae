package app

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
)

// TestMain makes the test binary the commands that scripts run: ambit, a build that is no release, and two releases.
func TestMain(m *testing.M) {
	programs := map[string]func(){}
	for name, version := range map[string]string{"ambit": "v0.2.0-5-gabcdef0", "ambit-v0.1.0": "v0.1.0", "ambit-v0.2.0": "v0.2.0"} {
		programs[name] = func() {
			env := &command.Env{Console: console.Console{Out: os.Stdout, Err: os.Stderr}, In: os.Stdin, Version: version}
			os.Exit(run(context.Background(), os.Args[1:], env))
		}
	}
	testscript.Main(m, programs)
}

var update = flag.Bool("update", false, "rewrite what the stories in testdata expect")

type apiKey struct{}

// TestCommands runs the stories in testdata, each with an API server of its own that has two nodes.
func TestCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			api := newFakeAPI(env.T().(testing.TB))
			var err error
			if api.bundle, err = testBundle(); err != nil {
				return err
			}
			if err := api.load(startObjects); err != nil {
				return err
			}
			env.Values[apiKey{}] = api
			path := filepath.Join(env.WorkDir, "kubeconfig")
			env.Setenv("KUBECONFIG", path)
			return os.WriteFile(path, fmt.Appendf(nil, kubeconfig, api.server.URL), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"objects": cmdObjects, "stored": cmdStored, "field": cmdField, "agent": cmdAgent, "deny": cmdDeny, "code": cmdCode, "remove": cmdRemove,
			"dump": cmdDump, "unknown": cmdUnknown,
		},
	})
}

func fake(ts *testscript.TestScript) *fakeAPI { return ts.Value(apiKey{}).(*fakeAPI) }

// cmdObjects FILE stores the objects of a file.
func cmdObjects(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(fake(ts).load(ts.ReadFile(args[0])))
}

// cmdStored PLURAL prints the objects of a kind, one a line, as namespace/name, or "none".
func cmdStored(ts *testscript.TestScript, _ bool, args []string) {
	f := fake(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.objects[args[0]]) == 0 {
		fmt.Fprintln(ts.Stdout(), "none")
	}
	for _, name := range slices.Sorted(maps.Keys(f.objects[args[0]])) {
		fmt.Fprintln(ts.Stdout(), strings.TrimPrefix(name, "/"))
	}
}

// cmdField PLURAL NAMESPACE/NAME PATH.. prints a field; a number in the path is the index of a list.
func cmdField(ts *testscript.TestScript, _ bool, args []string) {
	f := fake(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	name := args[1]
	if !strings.Contains(name, "/") {
		name = "/" + name
	}
	var value any = f.objects[args[0]][name]
	for _, step := range args[2:] {
		switch v := value.(type) {
		case object:
			value = v[step]
		case []any:
			var i int
			fmt.Sscan(step, &i)
			value = v[i]
		}
	}
	if s, ok := value.(string); ok {
		fmt.Fprintln(ts.Stdout(), s)
		return
	}
	text, err := json.Marshal(value)
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), string(text))
}

// cmdAgent NODE REPORT... sets what the agent of a node answers, as "PHASE PODS CONNECTIONS".
func cmdAgent(ts *testscript.TestScript, _ bool, args []string) {
	f := fake(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reports[args[0]] = args[1:]
}

// cmdDump NODE|POD FILE sets what the node proxies of a node, or one of them, answer at /config_dump.
func cmdDump(ts *testscript.TestScript, _ bool, args []string) {
	f := fake(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dumps[args[0]] = ts.ReadFile(args[1])
}

// cmdUnknown PLURAL... takes kinds away.
func cmdUnknown(ts *testscript.TestScript, _ bool, args []string) {
	f := fake(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, plural := range args {
		f.unknown[plural] = true
	}
}

// cmdDeny "VERB RESOURCE"... takes rights away.
func cmdDeny(ts *testscript.TestScript, _ bool, args []string) {
	f := fake(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, right := range args {
		f.denied[right] = true
	}
}

// cmdRemove PLURAL NAMESPACE/NAME takes an object away, without what would follow.
func cmdRemove(ts *testscript.TestScript, _ bool, args []string) {
	f := fake(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.objects[args[0]], args[1])
}

// cmdCode N COMMAND... runs a command that must end with exit code N.
func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		_, got, _ = strings.Cut(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("%s ended with %v, want exit code %s", strings.Join(args[1:], " "), err, args[0])
	}
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
users: [{name: test, user: {}}]
current-context: test
`

const startObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {kubernetes.io/os: linux}}
status: {nodeInfo: {kernelVersion: 6.1.0-18-amd64}, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Node
metadata: {name: node2, labels: {kubernetes.io/os: linux}}
status: {nodeInfo: {kernelVersion: 6.1.0-18-amd64}, conditions: [{type: Ready, status: "True"}]}
`

// testBundle is a trust bundle whose root is good until 2100.
func testBundle() (string, error) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

// TestUnreachable: a cluster that does not answer has an exit code of its own, and the message says which one it is and how
// to mean another.
func TestUnreachable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	defer refusing.Close()
	t.Setenv("KUBECONFIG", "")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, test := range []struct {
		name, server string
		args         []string
		want         string
	}{
		{"nobody listens", "http://127.0.0.1:1", nil,
			"reach the cluster at http://127.0.0.1:1 (context test): dial tcp 127.0.0.1:1: connect: connection refused; is it up, and the one you mean?"},
		{"no answer", "http://" + silent.Addr().String(), nil, "context canceled; is it up"},
		{"no credentials", refusing.URL, nil, "does not know your credentials: "},
		{"no such context", refusing.URL, []string{"--context", "other"}, `find the cluster: context "other" does not exist`},
		{"no context", refusing.URL, nil, "find the cluster: the kubeconfig has no current context: name one by --context"},
		{"no such file", refusing.URL, []string{"--kubeconfig", "/nowhere"}, "find the cluster: stat /nowhere"},
		{"no file", "", nil, "find the cluster: there is no kubeconfig: name one by --kubeconfig or $KUBECONFIG"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := []string{"check"}
			t.Setenv("HOME", t.TempDir())
			if test.server != "" {
				path := filepath.Join(t.TempDir(), "kubeconfig")
				text := fmt.Sprintf(kubeconfig, test.server)
				if test.name == "no context" {
					text = strings.Replace(text, "current-context: test", "", 1)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				args = append(args, "--kubeconfig", path)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if strings.Contains(test.want, "canceled") {
				go func() { // as Ctrl-C, once the command waits for an answer
					if c, err := silent.Accept(); err == nil {
						defer c.Close()
						cancel()
						<-t.Context().Done()
					}
				}()
			}
			var out, errOut bytes.Buffer
			code := Run(ctx, append(args, test.args...), strings.NewReader(""), &out, &errOut)
			if code != console.ExitUnreachable || out.Len() > 0 || !strings.Contains(errOut.String(), test.want) {
				t.Errorf("code %d, stdout %q, stderr %q, want %q", code, out.String(), errOut.String(), test.want)
			}
		})
	}
}
