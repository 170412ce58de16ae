package l7_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/l7"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/mesh/meshconfig"
)

var update = flag.Bool("update", false, "rewrite the wanted results")

var mesh = translate.Mesh{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}

// story is one txtar of testdata: in.yaml are objects; mesh.yaml, if it is there, the mesh settings; show names what the
// story is about, of what can be wanted: listeners, static, routes, clusters, endpoints, workloads, status. With a file gateway it is
// about what that Gateway ("namespace/name") is told, else about a waypoint that everything is bound to.
type story struct {
	archive *txtar.Archive
	files   map[string][]byte
	objects []cluster.Object
	mesh    translate.Mesh
	config  l7.Config
}

func stories(t *testing.T) map[string]*story {
	t.Helper()
	names, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(names) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	out := map[string]*story{}
	for _, name := range names {
		archive, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s := &story{archive: archive, files: map[string][]byte{}}
		for _, f := range archive.Files {
			s.files[f.Name] = f.Data
		}
		if s.objects, err = clustertest.Parse(s.files["in.yaml"]); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.mesh = s.settings(t, mesh.ClusterDomain)
		s.config = s.translate(s.objects)
		out[name] = s
	}
	return out
}

// settings are the mesh with what the story's mesh settings say, with services of a cluster domain.
func (s *story) settings(t *testing.T, domain string) translate.Mesh {
	t.Helper()
	settings, err := meshconfig.Parse(bytes.ReplaceAll(s.files["mesh.yaml"], []byte(mesh.ClusterDomain), []byte(domain)))
	if err != nil {
		t.Fatal(err)
	}
	m := mesh
	m.ClusterDomain = domain
	m.Providers, m.DefaultTracers, m.DefaultLoggers = settings.ExtensionProviders, settings.DefaultTracers, settings.DefaultLoggers
	return m
}

// translate is what the waypoint of the story is told of objects.
func (s *story) translate(objects []cluster.Object) l7.Config {
	snapshot := clustertest.Snapshot(s.mesh, objects)
	namespace, name, ok := strings.Cut(strings.TrimSpace(string(s.files["gateway"])), "/")
	if !ok {
		return l7.All(snapshot)
	}
	return l7.For(snapshot, cluster.Key{Namespace: namespace, Name: name})
}

// TestGoldens translates in.yaml of each story in testdata, and compares what the story is about with the files want.*.
func TestGoldens(t *testing.T) {
	for name, s := range stories(t) {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			got := map[string][]byte{}
			for _, what := range strings.Fields(string(s.files["show"])) {
				got["want."+what] = render(t, what, s.config)
			}
			if len(got) == 0 {
				t.Fatal("the story shows nothing")
			}
			if *update {
				s.archive.Files = slices.DeleteFunc(s.archive.Files, func(f txtar.File) bool { return strings.HasPrefix(f.Name, "want.") })
				for _, what := range strings.Fields(string(s.files["show"])) {
					s.archive.Files = append(s.archive.Files, txtar.File{Name: "want." + what, Data: got["want."+what]})
				}
				if err := os.WriteFile(name, txtar.Format(s.archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			for what, text := range got {
				if diff := cmp.Diff(string(s.files[what]), string(text)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
			}
		})
	}
}

func render(t *testing.T, what string, c l7.Config) []byte {
	t.Helper()
	var out bytes.Buffer
	static := func(name string) bool {
		return name == l7.ListenerTerminate || name == l7.ListenerOriginate || name == l7.ListenerMain
	}
	switch what {
	case "listeners":
		for _, l := range c.Listeners {
			if l.Name == l7.ListenerMain {
				text(t, &out, l)
			}
		}
	case "static":
		for _, l := range c.Listeners {
			if l.Name != l7.ListenerMain {
				text(t, &out, l)
			}
		}
		for _, cl := range c.Clusters {
			if static(cl.Name) {
				text(t, &out, cl)
			}
		}
	case "routes":
		for _, r := range c.Routes {
			text(t, &out, r)
		}
	case "clusters":
		for _, cl := range c.Clusters {
			if !static(cl.Name) {
				text(t, &out, cl)
			}
		}
	case "endpoints":
		for _, e := range c.LoadAssignments {
			text(t, &out, e)
		}
	case "workloads":
		for _, w := range c.Workloads {
			text(t, &out, w)
		}
	case "status":
		for _, s := range c.Policies {
			fmt.Fprintf(&out, "%s %s\n  %s=%s %s (%d): %s\n", s.Kind, s.Key, s.Want.Type, s.Want.Status, s.Want.Reason, s.Want.Generation, s.Want.Message)
		}
		for _, s := range c.Statuses {
			fmt.Fprintf(&out, "%s %s\n", s.Kind, s.Key)
			for _, p := range s.Parents {
				ref, err := json.Marshal(p.Ref)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&out, "  %s\n", ref)
				for _, c := range p.Conditions {
					fmt.Fprintf(&out, "    %s=%s %s (%d): %s\n", c.Type, c.Status, c.Reason, c.Generation, c.Message)
				}
			}
		}
	default:
		t.Fatalf("nothing is called %q", what)
	}
	return out.Bytes()
}

// text writes a message as YAML.
func text(t *testing.T, out *bytes.Buffer, m proto.Message) {
	t.Helper()
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.JSONToYAML(raw)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(out, "---\n%s", y)
}

// TestOrder: what becomes of objects does not depend on the order in which they come.
func TestOrder(t *testing.T) {
	for name, s := range stories(t) {
		objects := slices.Clone(s.objects)
		slices.Reverse(objects)
		again := s.translate(objects)
		for _, what := range []string{"listeners", "static", "routes", "clusters", "endpoints", "workloads", "status"} {
			if diff := cmp.Diff(string(render(t, what, s.config)), string(render(t, what, again))); diff != "" {
				t.Errorf("%s: the order of objects changes %s:\n%s", name, what, diff)
			}
		}
	}
}
