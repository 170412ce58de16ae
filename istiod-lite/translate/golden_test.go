package translate_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
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

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/istiod-lite/cluster/clustertest"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

var update = flag.Bool("update", false, "rewrite the wanted results")

// mesh is what goldens are translated for, but for what a file's mesh.yaml sets.
var mesh = translate.Mesh{ClusterID: "Kubernetes", ClusterDomain: "cluster.local", TrustDomain: "cluster.local", RootNamespace: "istio-system"}

// TestGoldens translates in.yaml of each story in testdata, and compares with want.yaml and want.problems. Nothing is among it
// that Istio's node proxy would refuse.
func TestGoldens(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stories in testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			story := map[string][]byte{}
			for _, f := range archive.Files {
				story[f.Name] = f.Data
			}
			m := mesh
			if err := yaml.UnmarshalStrict(story["mesh.yaml"], &m); err != nil {
				t.Fatal(err)
			}
			objects, err := clustertest.Parse(story["in.yaml"])
			if err != nil {
				t.Fatal(err)
			}
			config := translate.All(clustertest.Snapshot(m, objects))
			for name, a := range config.Authorizations {
				if fault := peerRefuses(a); fault != "" {
					t.Errorf("Istio's node proxy refuses %s: %s", name, fault)
				}
			}
			for name, a := range config.Addresses {
				if fault := peerRefuses(a); fault != "" {
					t.Errorf("Istio's node proxy refuses %s: %s", name, fault)
				}
			}
			resources, problems := render(t, config)
			if *update {
				archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return strings.HasPrefix(f.Name, "want.") })
				archive.Files = append(archive.Files, txtar.File{Name: "want.yaml", Data: resources})
				if len(problems) > 0 {
					archive.Files = append(archive.Files, txtar.File{Name: "want.problems", Data: problems})
				}
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(story["want.yaml"]), string(resources)); diff != "" {
				t.Errorf("resources (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(string(story["want.problems"]), string(problems)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// render writes resources as YAML, sorted by name, with addresses as people write them. What is there in each mesh and
// says nothing of the story, the static policy, is left out unless it differs.
func render(t *testing.T, c translate.Config) (resources, problems []byte) {
	t.Helper()
	for _, a := range translate.Static(mesh) {
		if name := translate.AuthorizationName(a); proto.Equal(a, c.Authorizations[name]) {
			delete(c.Authorizations, name)
		}
	}
	var out bytes.Buffer
	write := func(kind, name string, m proto.Message) {
		text, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		readable(v)
		text, err = yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "# %s %s\n%s", kind, name, text)
	}
	if !proto.Equal(c.Settings, translate.Settings(mesh)) {
		write("Settings", extension.Mesh, c.Settings)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Authorizations)) {
		write("Authorization", name, c.Authorizations[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Addresses)) {
		write("Address", name, c.Addresses[name])
	}
	var faults bytes.Buffer
	for _, p := range c.Problems {
		fmt.Fprintf(&faults, "%s %s: %s\n", p.Kind, p.Key, p.Message)
	}
	return out.Bytes(), faults.Bytes()
}

// readable turns the bytes of addresses into text, in place.
func readable(v any) {
	ip := func(s string) string {
		raw, err := base64.StdEncoding.DecodeString(s)
		if addr, ok := netip.AddrFromSlice(raw); ok && err == nil {
			return addr.String()
		}
		return s
	}
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if s, ok := value.(string); ok && key == "address" {
				v[key] = ip(s)
			}
			if list, ok := value.([]any); ok && key == "addresses" {
				for i := range list {
					if s, ok := list[i].(string); ok {
						list[i] = ip(s)
					}
				}
			}
			readable(value)
		}
	case []any:
		for _, value := range v {
			readable(value)
		}
	}
}
