package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/agentapi"
	"github.com/ambit-mesh/ambit/cni/enrolment"
)

// cluster is what the API says; err is what it says to everything.
type fakeObjects struct {
	uid       string
	pod       enrolment.Pod
	namespace map[string]string
	errs      []error // one a look, from the first
	looks     int
}

func (f *fakeObjects) Pod(context.Context, string, string) (string, enrolment.Pod, error) {
	f.looks++
	if len(f.errs) > 0 {
		err := f.errs[0]
		f.errs = f.errs[1:]
		return "", enrolment.Pod{}, err
	}
	return f.uid, f.pod, nil
}

func (f *fakeObjects) NamespaceLabels(context.Context, string) (map[string]string, error) {
	return f.namespace, nil
}

const result = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/var/run/netns/cni-1"}],"ips":[{"interface":0,"address":"10.0.0.7/24","gateway":"10.0.0.1"},{"address":"fd00::7/64"}]}`

func add(t *testing.T, p Plugin, runDir, namespace, name string) (stdout string, err error) {
	t.Helper()
	var out bytes.Buffer
	p.Stdout, p.Stderr = &out, &bytes.Buffer{}
	args := &skel.CmdArgs{
		Netns: "/var/run/netns/cni-1", ContainerID: "c", IfName: "eth0",
		Args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + name + ";K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID=uid-1",
		StdinData: fmt.Appendf(nil, `{"cniVersion":"1.0.0","name":"net","type":"ambit-cni","cni_agent_run_dir":%q,"kubeconfig":"/kc",
			"pod_namespace":"istio-system","exclude_namespaces":["kube-system"],"prevResult":%s}`, runDir, result),
	}
	err = p.Funcs().Add(args)
	return out.String(), err
}

// agentAt serves the agent's socket with what add answers.
func agentAt(t *testing.T, add func(context.Context, agentapi.AddRequest) error) (runDir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cni") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, api.AgentSocket))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: agentapi.Handler(add, func(int) {})}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ln) }()
	t.Cleanup(func() { s.Close(); <-done })
	return dir
}

func samePrevious(t *testing.T, stdout string) {
	t.Helper()
	var got, want any
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%q: %v", stdout, err)
	}
	json.Unmarshal([]byte(result), &want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("result of the chain changed:\n%s", diff)
	}
}

func TestAgentDecides(t *testing.T) {
	var asked agentapi.AddRequest
	refuse := errors.New("node proxy refused the pod: no certificate")
	for name, test := range map[string]struct{ err, want error }{"captured": {}, "not captured": {refuse, refuse}} {
		t.Run(name, func(t *testing.T) {
			dir := agentAt(t, func(_ context.Context, r agentapi.AddRequest) error { asked = r; return test.err })
			out, err := add(t, Plugin{Open: func(string) (Objects, error) { t.Error("looked itself"); return nil, errors.New("no") }}, dir, "shop", "web")
			if test.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				samePrevious(t, out)
			} else if err == nil || !strings.Contains(err.Error(), "ambit") || !strings.Contains(err.Error(), test.want.Error()) {
				t.Errorf("got %v", err)
			}
			if asked.Netns != "/var/run/netns/cni-1" || asked.PodNamespace != "shop" || asked.PodName != "web" || asked.PodUID != "uid-1" {
				t.Errorf("asked %+v", asked)
			}
			if len(asked.IPs) != 2 || asked.IPs[0].Address.String() != "10.0.0.7/24" || asked.IPs[1].Address.String() != "fd00::7/64" {
				t.Errorf("addresses %+v", asked.IPs)
			}
		})
	}
}

// TestPassesWithoutAsking: the agent must be able to start while nobody answers, the API least of all.
func TestPassesWithoutAsking(t *testing.T) {
	for _, pod := range [][2]string{{"istio-system", "ambit-cni-x7x2p"}, {"kube-system", "coredns-1"}, {"", ""}} {
		out, err := add(t, Plugin{Open: func(string) (Objects, error) { t.Error("looked"); return nil, errors.New("no") }}, t.TempDir(), pod[0], pod[1])
		if err != nil {
			t.Errorf("%v: %v", pod, err)
			continue
		}
		samePrevious(t, out)
	}
}

func TestAgentAway(t *testing.T) {
	ambient := map[string]string{api.LabelDataplaneMode: api.DataplaneModeAmbient}
	none := map[string]string{api.LabelDataplaneMode: api.DataplaneModeNone}
	away := errors.New("connection refused by the API")
	for name, test := range map[string]struct {
		objects         fakeObjects
		open            error
		namespace, name string
		refused         []string // parts of the message; none: the pod starts
	}{
		"un-labelled":          {objects: fakeObjects{uid: "uid-1"}},
		"opted out":            {objects: fakeObjects{uid: "uid-1", pod: enrolment.Pod{Labels: none}, namespace: ambient}},
		"labelled":             {objects: fakeObjects{uid: "uid-1", pod: enrolment.Pod{Labels: ambient}}, refused: []string{"ambit", "is to be captured", "agent on this node does not answer", "DaemonSet istio-system/ambit-cni"}},
		"namespace labelled":   {objects: fakeObjects{uid: "uid-1", namespace: ambient}, refused: []string{"namespace shop is labelled istio.io/dataplane-mode=ambient"}},
		"API away":             {objects: fakeObjects{errs: []error{away, away}}, refused: []string{"ambit", "does not know", away.Error(), "DaemonSet istio-system/ambit-cni"}},
		"API back at once":     {objects: fakeObjects{uid: "uid-1", errs: []error{away}}},
		"no kubeconfig":        {open: os.ErrNotExist, refused: []string{"does not know", "file does not exist"}},
		"another pod's labels": {objects: fakeObjects{uid: "uid-0"}, refused: []string{"does not know", "uid-0"}},
		"another's agent":      {objects: fakeObjects{uid: "uid-1", namespace: ambient}, name: "ambit-cni-x", refused: []string{"is to be captured"}},
		"mesh's own ztunnel":   {objects: fakeObjects{uid: "uid-1"}, namespace: "istio-system", name: "ztunnel-x"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.namespace == "" {
				test.namespace = "shop"
			}
			if test.name == "" {
				test.name = "web"
			}
			test.objects.pod.Namespace = test.namespace
			for how, dir := range map[string]string{
				"no socket": t.TempDir(),
				"not ready": agentAt(t, func(context.Context, agentapi.AddRequest) error {
					return fmt.Errorf("%w: starting", agentapi.ErrNoAnswer)
				}),
				"dies over it": agentAt(t, func(context.Context, agentapi.AddRequest) error { panic(http.ErrAbortHandler) }),
			} {
				objects := test.objects
				out, err := add(t, Plugin{Open: func(path string) (Objects, error) {
					if path != "/kc" {
						t.Errorf("kubeconfig %s", path)
					}
					return &objects, test.open
				}}, dir, test.namespace, test.name)
				if len(test.refused) == 0 {
					if err != nil {
						t.Errorf("%s: %v", how, err)
						continue
					}
					samePrevious(t, out)
					continue
				}
				if err == nil {
					t.Errorf("%s: started", how)
					continue
				}
				for _, part := range test.refused {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%s: message %q lacks %q", how, err, part)
					}
				}
				if out != "" {
					t.Errorf("%s: wrote a result: %s", how, out)
				}
			}
		})
	}
}

func TestBadCalls(t *testing.T) {
	for name, stdin := range map[string]string{
		"garbage":       "{",
		"not chained":   `{"cniVersion":"1.0.0","name":"net","type":"ambit-cni"}`,
		"bad version":   `{"cniVersion":"9.9.9","name":"net","type":"ambit-cni","prevResult":` + result + `}`,
		"wrong types":   `{"cniVersion":"1.0.0","name":"net","type":"ambit-cni","exclude_namespaces":3,"prevResult":` + result + `}`,
		"prevResult no": `{"cniVersion":"1.0.0","name":"net","type":"ambit-cni","prevResult":{"ips":3}}`,
	} {
		var out bytes.Buffer
		p := Plugin{Stdout: &out, Stderr: &bytes.Buffer{}, Open: func(string) (Objects, error) { return nil, errors.New("no") }}
		err := p.Add(&skel.CmdArgs{Netns: "/n", Args: "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", StdinData: []byte(stdin)})
		var cniErr *types.Error
		if !errors.As(err, &cniErr) || !strings.Contains(err.Error(), "ambit") || out.Len() > 0 {
			t.Errorf("%s: %v, wrote %q", name, err, out.String())
		}
	}
}

func TestOtherVerbsSucceed(t *testing.T) {
	f := Plugin{}.Funcs()
	for name, verb := range map[string]func(*skel.CmdArgs) error{"DEL": f.Del, "CHECK": f.Check, "GC": f.GC, "STATUS": f.Status} {
		if err := verb(&skel.CmdArgs{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
