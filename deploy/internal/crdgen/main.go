// Command crdgen writes the custom resource definitions that the chart carries: it copies them, byte for byte, out of modules that
// are pinned. Istio's are of the Go types that the control plane is built with. Those of the Gateway API are of the version whose
// conformance suite the mesh is held to; it is newer than the Go types, which its definitions in the standard channel have room for.
// Ambit's own is written by hand.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
	gateway "sigs.k8s.io/gateway-api/pkg/consts"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api/v1alpha1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "crdgen:", err)
		os.Exit(1)
	}
}

// ownCRD defines ambit's own kind, from the folder that go generate runs in: it is beside its Go types.
const ownCRD = "../api/v1alpha1/" + v1alpha1.Definition

// istioKinds are the kinds of Istio's API that ambit reads; the others (Sidecar, EnvoyFilter, ...) would promise what it
// does not do.
var istioKinds = []string{
	"AuthorizationPolicy", "DestinationRule", "PeerAuthentication", "RequestAuthentication", "ServiceEntry", "Telemetry", "VirtualService",
	"WorkloadEntry",
}

// definition is what crdgen looks at in a custom resource definition.
type definition struct {
	Kind     string
	Metadata struct {
		Name        string
		Annotations map[string]string
	}
	Spec struct {
		Group string
		Names struct{ Kind, Plural string }
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: crdgen FOLDER")
	}
	crds, err := gatewayCRDs(ctx)
	if err != nil {
		return err
	}
	istio, err := istioCRDs(ctx)
	if err != nil {
		return err
	}
	own, err := os.ReadFile(ownCRD)
	if err != nil {
		return err
	}
	return write(args[0], append(append(crds, istio...), own))
}

// write makes the definitions the only content of a folder.
func write(folder string, crds [][]byte) error {
	if err := os.RemoveAll(folder); err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, crd := range crds {
		var d definition
		if err := yaml.Unmarshal(crd, &d); err != nil {
			return fmt.Errorf("read a definition: %w", err)
		}
		name := fmt.Sprintf("%s_%s.yaml", d.Spec.Group, d.Spec.Names.Plural)
		if err := os.WriteFile(filepath.Join(folder, name), crd, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// gatewayCRDs returns the Gateway API's standard channel. Its admission policy is left out: it would refuse other
// installers of the Gateway API in the same cluster.
func gatewayCRDs(ctx context.Context) ([][]byte, error) {
	dir, err := moduleDir(ctx, suite, "sigs.k8s.io/gateway-api")
	if err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(dir, "config/crd/standard/*.yaml"))
	if err != nil {
		return nil, err
	}
	var crds [][]byte
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		var d definition
		if err := yaml.Unmarshal(text, &d); err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if d.Kind != "CustomResourceDefinition" {
			continue
		}
		if got := d.Metadata.Annotations[gateway.BundleVersionAnnotation]; semver.Compare(got, gateway.BundleVersion) < 0 {
			return nil, fmt.Errorf("%s is of bundle %q, the Go types are of %q", name, got, gateway.BundleVersion)
		}
		crds = append(crds, text)
	}
	if len(crds) == 0 {
		return nil, fmt.Errorf("no custom resource definition in %s", dir)
	}
	return crds, nil
}

func istioCRDs(ctx context.Context) ([][]byte, error) {
	dir, err := moduleDir(ctx, ".", "istio.io/api")
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "kubernetes/customresourcedefinitions.gen.yaml"))
	if err != nil {
		return nil, err
	}
	missing := slices.Clone(istioKinds)
	var crds [][]byte
	for doc := range bytes.SplitSeq(text, []byte("\n---\n")) {
		var d definition
		if err := yaml.Unmarshal(doc, &d); err != nil {
			return nil, fmt.Errorf("read Istio's definitions: %w", err)
		}
		if i := slices.Index(missing, d.Spec.Names.Kind); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			crds = append(crds, append(bytes.TrimSpace(doc), '\n'))
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("istio.io/api defines no %s", strings.Join(missing, ", "))
	}
	return crds, nil
}

// suite is the module, from the folder that go generate runs in, that pins the version of the Gateway API.
const suite = "../e2e/conformance/suite"

// moduleDir returns the folder of the version of a module that the go.mod in a folder pins.
func moduleDir(ctx context.Context, pinned, module string) (string, error) {
	command := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = pinned
		cmd.Env = append(os.Environ(), "GOTOOLCHAIN=auto") // the suite asks for a newer Go
		return cmd
	}
	// "go mod download" first: the module may be pinned without any of its packages having been built here.
	if out, err := command("mod", "download", module).CombinedOutput(); err != nil {
		return "", fmt.Errorf("download %s: %w\n%s", module, err, out)
	}
	out, err := command("list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}
