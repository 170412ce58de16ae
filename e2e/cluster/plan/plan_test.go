package plan

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"sigs.k8s.io/yaml"
)

// TestGolden shows the whole plan for the options at the head of each story. `go test -update` rewrites the rest.
func TestGolden(t *testing.T) {
	update := flag.Lookup("update").Value.String() == "true"
	stories, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(stories) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, path := range stories {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			story, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(story.Files) == 0 || story.Files[0].Name != "options.json" {
				t.Fatal("the first file must be options.json")
			}
			var o Options
			if err := json.Unmarshal(story.Files[0].Data, &o); err != nil {
				t.Fatal(err)
			}
			have := render(t, New(o))
			if update {
				story.Files = append(story.Files[:1], have...)
				if err := os.WriteFile(path, txtar.Format(story), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(text(story.Files[1:]), text(have)); diff != "" {
				t.Errorf("the plan has changed (-want +have); go test -update accepts it:\n%s", diff)
			}
		})
	}
}

func text(files []txtar.File) map[string]string {
	out := map[string]string{}
	for _, f := range files {
		out[f.Name] = string(f.Data)
	}
	return out
}

func render(t *testing.T, p Plan) []txtar.File {
	t.Helper()
	var out []txtar.File
	add := func(name string, data []byte) {
		out = append(out, txtar.File{Name: name, Data: append(bytes.TrimRight(data, "\n"), '\n')})
	}
	n := p.Nodes[0]
	files, err := p.NodeFiles(n)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		add("node1/"+name, files[name])
	}
	object, err := n.NodeObject()
	if err != nil {
		t.Fatal(err)
	}
	add("node1/object.json", object)
	for name, spec := range map[string]any{
		"cp/machine.json": p.ControlPlaneSpec([]string{"/cg/cp"}), "node1/machine.json": p.NodeSpec(n, []string{"/cg/node1"}, "boot-id"),
	} {
		data, err := json.MarshalIndent(spec, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		add(name, data)
	}
	slices.SortFunc(out, func(a, b txtar.File) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func TestEveryYAMLParses(t *testing.T) {
	p := New(Options{StateDir: "/s", BinDir: "/b", Link: linkChoices(Dual)[0]})
	manifests, err := p.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]int{}
	for _, doc := range bytes.Split(manifests, []byte("\n---\n")) {
		var object struct{ Kind string }
		if err := yaml.UnmarshalStrict(doc, &object, yaml.DisallowUnknownFields); err != nil && !strings.Contains(err.Error(), "unknown field") {
			t.Errorf("%v:\n%s", err, doc)
		}
		kinds[object.Kind]++
	}
	if kinds["Deployment"] != 1 || kinds["Service"] != 1 {
		t.Errorf("CoreDNS is %v", kinds)
	}
	files, err := p.NodeFiles(p.Nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		var v any
		if strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".conflist") {
			if err := yaml.Unmarshal(data, &v); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestRangesDoNotOverlap(t *testing.T) {
	for family, count := range map[Family]int{Dual: 2, IPv4: 1, IPv6: 1} {
		t.Run(string(family), func(t *testing.T) { testRanges(t, family, count) })
	}
}

func testRanges(t *testing.T, family Family, count int) {
	p := New(Options{StateDir: "/s", BinDir: "/b", Link: linkChoices(family)[0], Family: family})
	if len(p.PodRanges) != count || len(p.ServiceRanges) != count || len(p.Gateways) != count {
		t.Errorf("pods %v, services %v, gateways %v, want %d of each", p.PodRanges, p.ServiceRanges, p.Gateways, count)
	}
	var all []netip.Prefix
	all = append(all, p.ServiceRanges...)
	for _, n := range p.Nodes {
		if len(n.Addresses) != count || len(n.PodRanges) != count {
			t.Errorf("%s has addresses %v, pods %v, want %d of each", n.Name, n.Addresses, n.PodRanges, count)
		}
		all = append(all, n.PodRanges...)
		for i, a := range n.Addresses {
			all = append(all, netip.PrefixFrom(a, a.BitLen()))
			if link := netip.PrefixFrom(p.Gateways[i], p.Bits(a)).Masked(); !link.Contains(a) {
				t.Errorf("%s of %s is not on the link of its gateway, %s", a, n.Name, link)
			}
		}
		for i, r := range n.PodRanges {
			if !p.PodRanges[i].Contains(r.Addr()) {
				t.Errorf("%s of %s is outside of %s", r, n.Name, p.PodRanges[i])
			}
		}
	}
	for i, a := range all {
		if a.Addr().Is4() && family == IPv6 || a.Addr().Is6() && family == IPv4 {
			t.Errorf("%s is of another family", a)
		}
		for _, b := range all[i+1:] {
			if a.Overlaps(b) {
				t.Errorf("%s overlaps %s", a, b)
			}
		}
	}
	if !p.Link.Contains(p.Host) || !p.Link.Contains(p.API) || !p.ServiceRanges[0].Contains(p.DNS) {
		t.Errorf("machine %s, API server %s, DNS %s are not of %s and %s", p.Host, p.API, p.DNS, p.Link, p.ServiceRanges[0])
	}
	if a, b := p.Nodes[0].Hardware(), p.Nodes[1].Hardware(); a.String() == b.String() {
		t.Errorf("both nodes have the hardware address %s", a)
	}
	bits := map[Family]int{Dual: 24, IPv4: 24, IPv6: 64}[family]
	for _, choice := range linkChoices(family) {
		if choice.Bits() != bits || choice.Overlaps(p.PodRanges[0]) || choice.Overlaps(p.ServiceRanges[0]) {
			t.Errorf("link %s is not a free /%d", choice, bits)
		}
	}
}

func TestChooseLink(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, p := range list {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	tests := []struct {
		family Family
		taken  []netip.Prefix
		want   string
	}{
		{Dual, nil, "10.89.0.0/24"},
		{IPv4, prefixes("192.168.1.0/24", "fe80::/64"), "10.89.0.0/24"},
		{Dual, prefixes("10.89.0.0/16"), "10.189.77.0/24"},
		{Dual, prefixes("10.0.0.0/8", "172.29.89.7/32"), "192.168.189.0/24"},
		{IPv6, prefixes("10.0.0.0/8", "fd00::/64"), "fd00:10:89::/64"},
		{IPv6, prefixes("fd00:10:89::/48"), "fd00:10:189:77::/64"},
	}
	for _, tt := range tests {
		if have, err := ChooseLink(tt.family, tt.taken); err != nil || have.String() != tt.want {
			t.Errorf("%s with %v taken: %s, %v; want %s", tt.family, tt.taken, have, err, tt.want)
		}
	}
	if have, err := ChooseLink(Dual, prefixes("0.0.0.0/1", "128.0.0.0/1")); err == nil {
		t.Errorf("with everything taken: %s", have)
	}
}

func TestParseFamily(t *testing.T) {
	for name, want := range map[string]Family{"": Dual, "dual": Dual, "ipv4": IPv4, "ipv6": IPv6} {
		if have, err := ParseFamily(name); err != nil || have != want {
			t.Errorf("%q is %q, %v; want %q", name, have, err, want)
		}
	}
	if have, err := ParseFamily("IPv5"); err == nil || !strings.Contains(err.Error(), "dual, ipv4 or ipv6") {
		t.Errorf("IPv5 is %q, %v; want an error that names the families", have, err)
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "rewrite the stories in testdata")
	flag.Parse()
	os.Exit(m.Run())
}
