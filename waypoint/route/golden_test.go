package route_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/waypoint/message"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

var update = flag.Bool("update", false, "rewrite the wanted results")

// parse reads a RouteConfiguration as YAML.
func parse(t testing.TB, text []byte) *routev3.RouteConfiguration {
	t.Helper()
	data, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	rc := &routev3.RouteConfiguration{}
	if err := protojson.Unmarshal(data, rc); err != nil {
		t.Fatal(err)
	}
	return rc
}

// TestGoldens compiles routes.yaml of each story in testdata and shows what becomes of each of its requests.
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
			story := map[string]string{}
			for _, f := range archive.Files {
				story[f.Name] = string(f.Data)
			}
			table, err := route.Compile(parse(t, []byte(story["routes.yaml"])))
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), "; ", "\n") + "\n"
			} else {
				for _, block := range strings.Split(strings.TrimSpace(story["requests"]), "\n\n") {
					got += play(t, table, block)
				}
			}
			if *update {
				archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == "want" })
				archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(story["want"], got); diff != "" {
				t.Errorf("want -, got +:\n%s", diff)
			}
		})
	}
}

// request reads a request as a story has it: the first line is method and path, then fields, and what is known beside them:
// ":peer" (the client's identity), ":port" (that it connected to) and ":scheme".
func request(t testing.TB, block string) (req *message.Request, client route.Client, port uint16) {
	t.Helper()
	req, port = &message.Request{Scheme: "http", Authority: "echo"}, 80
	for i, line := range strings.Split(strings.TrimSpace(block), "\n") {
		if i == 0 {
			req.Method, req.Path, _ = strings.Cut(line, " ")
			continue
		}
		name, value, ok := strings.Cut(line, ": ")
		switch {
		case name == "host":
			req.Authority = value
		case name == ":peer":
			client.Principal = value
		case name == ":scheme":
			req.Scheme = value
		case name == ":port":
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			port = uint16(n)
		case ok:
			req.Header.Add(name, value)
		default:
			t.Fatalf("line %q", line)
		}
	}
	return req, client, port
}

func fields(h message.Fields) string {
	var b strings.Builder
	for _, f := range h {
		fmt.Fprintf(&b, " [%s: %s]", f.Name, f.Value)
	}
	return b.String()
}

// play tells what becomes of a request.
func play(t *testing.T, table *route.Table, block string) string {
	var b bytes.Buffer
	for line := range strings.Lines(block + "\n") {
		fmt.Fprint(&b, "> ", line)
	}
	req, client, port := request(t, block)
	r := table.Match(req, client)
	if r == nil {
		return b.String() + "no route\n\n"
	}
	fmt.Fprintf(&b, "route %q\n", r.Name)
	answer := func(what string, resp *message.Response) {
		r.EditResponse(&resp.Header)
		fmt.Fprintf(&b, "%s %d%s", what, resp.Status, fields(resp.Header))
		if resp.Body != nil {
			body, err := resp.Body.Next()
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, " %q", body)
		}
		fmt.Fprintln(&b)
	}
	if r.CORS != nil {
		if resp := r.CORS.Preflight(req); resp != nil {
			answer("preflight", resp)
			return b.String() + "\n"
		}
	}
	switch {
	case r.Redirect != nil:
		answer("redirect", r.Redirect.Response(req, port))
	case r.Direct != nil:
		answer("direct", r.Direct.Response())
	default:
		forwarded(&b, r, req)
	}
	return b.String() + "\n"
}

func forwarded(b *bytes.Buffer, r *route.Route, req *message.Request) {
	f := r.Forward
	fmt.Fprintf(b, "timeout %v, not found %d\n", f.Timeout, f.NotFoundStatus)
	for _, target := range f.Targets {
		out := req.Clone()
		target.EditRequest(out)
		fmt.Fprintf(b, "to %s (%d): %s %s %s%s\n", target.Cluster, target.Weight, out.Method, out.Authority, out.Path, fields(out.Header))
		resp := message.Fields{{Name: "server", Value: "app"}, {Name: "x-old", Value: "1"}}
		target.EditResponse(&resp)
		if r.CORS != nil {
			r.CORS.Respond(req.Header.Get("origin"), &resp)
		}
		fmt.Fprintf(b, "back:%s\n", fields(resp))
	}
	if f.Retry != nil {
		fmt.Fprintf(b, "retry %+v\n", *f.Retry)
	}
	for _, m := range f.Mirrors {
		fmt.Fprintf(b, "mirror %d/%d to %s as %s\n", m.Numerator, m.Denominator, m.Cluster, m.Authority(req.Authority))
	}
	if len(f.Upgrades) > 0 {
		fmt.Fprintf(b, "upgrades %v\n", f.Upgrades)
	}
}

// seeds are the routes.yaml of all stories.
func seeds(f testing.TB) [][]byte {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	var all [][]byte
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, a := range archive.Files {
			if a.Name == "routes.yaml" {
				all = append(all, a.Data)
			}
		}
	}
	return all
}
