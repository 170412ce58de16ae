package config_test

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

var update = flag.Bool("update", false, "rewrite the wanted results")

// message makes an empty message by the name that stories have for its type.
func message(t testing.TB, kind string) proto.Message {
	t.Helper()
	switch kind {
	case "cluster":
		return &clusterv3.Cluster{}
	case "endpoints":
		return &endpointv3.ClusterLoadAssignment{}
	case "listener":
		return &listenerv3.Listener{}
	case "routes":
		return &routev3.RouteConfiguration{}
	}
	t.Fatalf("type %q", kind)
	return nil
}

// order is that of Store.Handlers.
var order = []string{"cluster", "endpoints", "listener", "routes"}

// push sends resources of one type, by name, and returns what is rejected.
func push(t testing.TB, s *config.Store, kind string, upserts map[string]proto.Message, removed ...string) []xds.Rejection {
	t.Helper()
	var all []*discoveryv3.Resource
	for name, m := range upserts {
		a, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, &discoveryv3.Resource{Name: name, Version: "v", Resource: a})
	}
	return s.Handlers()[slices.Index(order, kind)].Apply(all, removed)
}

// parse reads a resource as YAML.
func parse(t testing.TB, kind string, text []byte) proto.Message {
	t.Helper()
	data, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	m := message(t, kind)
	if err := protojson.Unmarshal(data, m); err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	return m
}

// TestGoldens pushes the resources of each story in testdata, one after the other, as its files are named ("cluster <name>",
// "remove cluster <name>"), and shows what was rejected and the snapshot wherever a file "show" is, and at the end; "ask" shows which chain
// serves destinations, or with a name and "@" before clients who ask for that server there.
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
			var want, got bytes.Buffer
			s := config.NewStore(nil)
			for _, f := range archive.Files {
				words := strings.Fields(f.Name)
				var rejections []xds.Rejection
				switch words[0] {
				case "want":
					want.Write(f.Data)
					continue
				case "show":
					show(&got, s.Load())
					continue
				case "ask":
					for _, dst := range words[1:] {
						answer := "nothing"
						at := strings.LastIndexByte(dst, '@')
						if c := s.Load().Chain(netip.MustParseAddrPort(dst[at+1:])).For(dst[:max(at, 0)]); c != nil {
							answer = c.Name
						}
						fmt.Fprintf(&got, "%s is served by %s\n", dst, answer)
					}
					continue
				case "remove":
					rejections = push(t, s, words[1], nil, words[2])
				default:
					rejections = push(t, s, words[0], map[string]proto.Message{words[1]: parse(t, words[0], f.Data)})
				}
				for _, r := range rejections {
					part := ""
					if r.Replaced {
						part = " in part"
					}
					fmt.Fprintf(&got, "rejected %s%s:\n", r.Name, part)
					for one := range strings.SplitSeq(r.Err.Error(), "; ") {
						fmt.Fprintf(&got, "  %s\n", strings.ReplaceAll(one, "\u00a0", " "))
					}
				}
			}
			show(&got, s.Load())
			if *update {
				archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "want" })
				archive.Files = append(archive.Files, txtar.File{Name: "want", Data: got.Bytes()})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want.String(), got.String()); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
		})
	}
}

// show writes a snapshot down.
func show(b *bytes.Buffer, s *config.Snapshot) {
	fmt.Fprintln(b, "snapshot")
	if s.Terminate() != nil {
		fmt.Fprintf(b, "  terminate%s\n", values(s.Terminate()))
	}
	for _, c := range s.Chains() {
		fmt.Fprintf(b, "  chain %s\n", c.Name)
		if c.HTTP != nil {
			fmt.Fprintf(b, "    http%s\n", values(c.HTTP))
		} else {
			fmt.Fprintf(b, "    tcp%s\n", values(c.TCP))
		}
		if c.Logging != nil {
			fmt.Fprintf(b, "    logged%s\n", values(c.Logging))
		}
	}
	for _, dst := range s.Destinations() {
		c := s.Chain(dst)
		fmt.Fprintf(b, "  %s to %s\n", dst, c.Name)
		if c.Names == nil {
			continue
		}
		for name, to := range c.Names.All() {
			if to == nil {
				to = &config.Chain{Name: "nothing"}
			}
			fmt.Fprintf(b, "    %s to %s\n", name, to.Name)
		}
	}
	for _, name := range s.Missing() {
		fmt.Fprintf(b, "  missing routes %s\n", name)
	}
	names := map[string]*config.Cluster{}
	for name, c := range s.Clusters() {
		names[name] = c
	}
	for _, name := range sorted(names) {
		c := names[name]
		fmt.Fprintf(b, "  cluster %s%s\n", name, values(c.Settings))
		if c.Endpoints == nil {
			continue
		}
		fmt.Fprintf(b, "    endpoints\n")
		for i, p := range c.Endpoints.Priorities {
			for _, l := range p.Localities {
				fmt.Fprintf(b, "    priority %d locality %s/%s/%s weight %d\n", i, l.Region, l.Zone, l.SubZone, l.Weight)
				for _, e := range l.Endpoints {
					fmt.Fprintf(b, "     %s\n", values(e))
				}
			}
		}
	}
	for _, name := range s.RouteNames() {
		fmt.Fprintf(b, "  routes %s: %d, to %v\n", name, s.Routes(name).Len(), s.Routes(name).Clusters())
	}
}

func sorted[V any](m map[string]V) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// values writes the exported fields of a struct down that are set.
func values(v any) string {
	var b strings.Builder
	s := reflect.Indirect(reflect.ValueOf(v))
	for i := range s.NumField() {
		f := s.Field(i)
		if !s.Type().Field(i).IsExported() || f.IsZero() {
			continue
		}
		shown := fmt.Sprintf("%v", f.Interface())
		if f.Kind() == reflect.Pointer {
			shown = "{" + strings.TrimSpace(values(f.Interface())) + "}"
		}
		if d, ok := f.Interface().(time.Duration); ok {
			shown = d.String()
		}
		fmt.Fprintf(&b, " %s:%s", s.Type().Field(i).Name, shown)
	}
	return b.String()
}
