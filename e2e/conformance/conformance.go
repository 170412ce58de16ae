// Package conformance runs the Gateway API's conformance suite, as it was published, against the mesh on the cluster of
// e2e/cluster. The suite itself is a module of its own, in folder suite; this package prepares what it needs, runs it, and judges:
// every mesh test must have passed, none may be skipped, and the report must say so.
package conformance

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/e2e/harness"
)

const (
	// meshName is the XMesh object that the control plane keeps, from which the suite infers what is supported.
	meshName = "ambit"

	// ready bounds each wait for pods and conditions.
	ready = 3 * time.Minute
	// suiteTimeout bounds the suite. Where everything passes it takes about two minutes; a case that fails tries for 30 seconds.
	suiteTimeout = 25 * time.Minute

	gatewayAPI = "sigs.k8s.io/gateway-api"
)

//go:embed waypoint.yaml
var waypoint []byte

// waypointNamespace is where that manifest puts the waypoint.
const waypointNamespace = "conformance-waypoint"

// Run is one run of the suite.
type Run struct {
	// Out gets progress and results.
	Out io.Writer
	// Report is the file to write the suite's report to.
	Report string
	// Version is what the report says was tested; empty: what the built command says of itself.
	Version string
	// NoWaypoint leaves the suite's namespaces to the node proxies alone.
	NoWaypoint bool
	// Flags are added to those that the suite is given, and win over them. With -run-test only that test is judged, and with
	// -supported-features no XMesh is waited for.
	Flags []string

	root    string
	cluster *harness.Cluster
}

// Do brings up a cluster if there is none, builds and installs what is needed, runs the suite and judges. It leaves the cluster up.
// The error says what is wrong; progress and a table of results have been written.
func (r *Run) Do(ctx context.Context) error {
	var err error
	if r.root, err = harness.Root(); err != nil {
		return err
	}
	if r.Report, err = filepath.Abs(r.Report); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the conformance suite needs root: it runs on a cluster of namespaces")
	}
	for _, step := range []struct {
		title string
		do    func(context.Context) error
	}{
		{"compile the suite", r.compile},
		{"bring up a cluster", r.bringUp},
		{"build the programs and images, load them", r.images},
		{"install the Gateway API's experimental definitions", r.definitions},
		{"install the mesh", r.install},
		{"start a waypoint", r.startWaypoint},
	} {
		fmt.Fprintf(r.Out, "\n=== %s\n", step.title)
		begin := time.Now()
		if err := step.do(ctx); err != nil {
			r.dump(ctx)
			return fmt.Errorf("%s: %w", step.title, err)
		}
		fmt.Fprintf(r.Out, "    done (%s)\n", time.Since(begin).Round(100*time.Millisecond))
	}
	return r.suite(ctx)
}

func (r *Run) dump(ctx context.Context) {
	if r.cluster != nil {
		r.cluster.Dump(context.WithoutCancel(ctx), r.Out, waypointNamespace)
	}
}

func (r *Run) suiteDir() string { return filepath.Join(r.root, "e2e", "conformance", "suite") }

func (r *Run) cacheDir() string { return filepath.Join(r.root, ".cache", "conformance") }

func (r *Run) binary() string { return filepath.Join(r.cacheDir(), "suite.test") }

// compile builds the suite, with the Go that its module asks for.
func (r *Run) compile(ctx context.Context) error {
	if err := os.MkdirAll(r.cacheDir(), 0o755); err != nil {
		return err
	}
	_, err := r.inSuite(ctx, "test", "-c", "-o", r.binary(), ".")
	return err
}

// inSuite runs the go command in the suite's module and returns what it prints.
func (r *Run) inSuite(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = r.suiteDir()
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=auto", "GOWORK=off")
	var stdout strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, r.Out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w", args[0], err)
	}
	return strings.TrimSpace(stdout.String()), nil
}

func (r *Run) bringUp(ctx context.Context) error {
	if err := r.run(ctx, "make", "cluster-up"); err != nil {
		return err
	}
	var err error
	r.cluster, err = harness.Open(ctx)
	return err
}

func (r *Run) images(ctx context.Context) error {
	if err := r.run(ctx, "make", "build", "images"); err != nil {
		return err
	}
	if err := r.run(ctx, "go", "-C", "e2e/cluster", "run", "./cmd/cluster", "images", "echo-advanced"); err != nil {
		return err
	}
	return r.run(ctx, "make", "load")
}

// run runs a program in the repository and shows what it prints.
func (r *Run) run(ctx context.Context, program string, args ...string) error {
	if program == "make" {
		args = append([]string{"--no-print-directory"}, args...)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(r.root, ".cache", "cluster", "kubeconfig"))
	cmd.Stdout, cmd.Stderr = r.Out, r.Out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return nil
}

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// definitions applies the bundle of the suite's own version, in the experimental channel, which has XMesh. It goes first: where the
// standard channel is, its admission policy refuses the other one.
func (r *Run) definitions(ctx context.Context) error {
	const channelAnnotation = "gateway.networking.k8s.io/channel"
	gateways, err := r.cluster.Dynamic.Resource(definitions).Get(ctx, "gateways.gateway.networking.k8s.io", metav1.GetOptions{})
	if err == nil && gateways.GetAnnotations()[channelAnnotation] != "experimental" {
		return fmt.Errorf("the cluster has the Gateway API's %s channel, and the suite needs the experimental one: make cluster-down, and run it again",
			gateways.GetAnnotations()[channelAnnotation])
	}
	dir, err := r.inSuite(ctx, "list", "-m", "-f", "{{.Dir}}", gatewayAPI)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "config", "crd", "experimental", "gateway.networking*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no definitions in %s: %w", dir, err)
	}
	for _, file := range files {
		manifest, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := r.cluster.Apply(ctx, manifest); err != nil {
			return err
		}
	}
	return harness.Await(ctx, harness.Until{What: "definitions served", Within: ready}, func(ctx context.Context) error {
		for _, resource := range []schema.GroupVersionResource{gatewayResource, xmeshResource} {
			if _, err := r.cluster.Dynamic.Resource(resource).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
				return err
			}
		}
		return nil
	})
}

var (
	gatewayResource = schema.GroupVersionResource{Group: "gateway.networking.k8s.io", Version: "v1", Resource: "gateways"}
	xmeshResource   = schema.GroupVersionResource{Group: "gateway.networking.x-k8s.io", Version: "v1alpha1", Resource: "xmeshes"}
)

func (r *Run) install(ctx context.Context) error {
	if err := r.run(ctx, filepath.Join(r.root, "bin", "ambit"), "install", "--set", "tag=dev"); err != nil {
		return err
	}
	if r.given("supported-features") != "" {
		return nil
	}
	return harness.Await(ctx, harness.Until{What: "XMesh " + meshName + " lists features", Within: ready}, func(ctx context.Context) error {
		mesh, err := r.cluster.Dynamic.Resource(xmeshResource).Get(ctx, meshName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if features, _, _ := unstructured.NestedSlice(mesh.Object, "status", "supportedFeatures"); len(features) == 0 {
			return errors.New("its status has none")
		}
		return nil
	})
}

func (r *Run) startWaypoint(ctx context.Context) error {
	if r.NoWaypoint {
		fmt.Fprintln(r.Out, "    left out")
		return nil
	}
	if err := r.cluster.Apply(ctx, waypoint); err != nil {
		return err
	}
	return harness.Await(ctx, harness.Until{What: "Gateway waypoint programmed", Within: ready}, func(ctx context.Context) error {
		gateway, err := r.cluster.Dynamic.Resource(gatewayResource).Namespace(waypointNamespace).Get(ctx, "waypoint", metav1.GetOptions{})
		if err != nil {
			return err
		}
		return programmed(gateway)
	})
}

// programmed returns why a Gateway is not programmed.
func programmed(gateway *unstructured.Unstructured) error {
	list, _, _ := unstructured.NestedSlice(gateway.Object, "status", "conditions")
	var conditions []metav1.Condition
	for _, entry := range list {
		fields, _ := entry.(map[string]any)
		text := func(name string) string { value, _ := fields[name].(string); return value }
		conditions = append(conditions, metav1.Condition{
			Type: text("type"), Status: metav1.ConditionStatus(text("status")), Reason: text("reason"), Message: text("message"),
		})
	}
	condition := meta.FindStatusCondition(conditions, "Programmed")
	if condition == nil {
		return errors.New("it has no condition Programmed")
	}
	if condition.Status != metav1.ConditionTrue {
		return fmt.Errorf("condition Programmed is %s: %s: %s", condition.Status, condition.Reason, condition.Message)
	}
	return nil
}

// given is the value of a flag of the suite that the caller gave, or "".
func (r *Run) given(name string) string {
	for _, flag := range r.Flags {
		if key, value, _ := strings.Cut(strings.TrimLeft(flag, "-"), "="); key == name {
			return value
		}
	}
	return ""
}

// arguments are those of the suite.
func (r *Run) arguments(version string) []string {
	labels := []string{api.LabelDataplaneMode + "=" + api.DataplaneModeAmbient}
	if !r.NoWaypoint {
		labels = append(labels, api.LabelUseWaypoint+"=waypoint", api.LabelUseWaypointNamespace+"="+waypointNamespace)
	}
	return slices.Concat([]string{
		"-test.run=^TestConformance$", "-test.v", "-test.timeout=" + suiteTimeout.String(),
		"-gateway-class=", "-mesh-name=" + meshName, "-conformance-profiles=MESH-HTTP,MESH-GRPC",
		"-namespace-labels=" + strings.Join(labels, ","),
		"-organization=ambit-mesh", "-project=ambit", "-url=https://github.com/ambit-mesh/ambit", "-version=" + version,
		"-contact=https://github.com/ambit-mesh/ambit/issues", "-report-output=" + r.Report,
	}, r.Flags)
}
