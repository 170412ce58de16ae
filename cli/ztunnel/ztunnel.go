// Package ztunnel is `ambit ztunnel`: what a node proxy knows and does, as tables, JSON or YAML, and its log levels. It reads
// the proxy's /config_dump, over a port-forward or from a file, and works with Istio's ztunnel too. It changes nothing but
// log levels.
package ztunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cli/command"
	"github.com/ambit-mesh/ambit/cli/console"
	"github.com/ambit-mesh/ambit/cli/kube"
	"github.com/ambit-mesh/ambit/mesh/telemetry"
)

// New makes the command.
func New(env *command.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ztunnel",
		Aliases: []string{"zt", "ztunnel-config", "zc"},
		Short:   "Show what a node proxy knows: workloads, services, policies, certificates, connections",
		Long: `Shows what a node proxy (ztunnel) knows, and sets its log levels.

Which proxy: the one that POD names, or on whose node POD runs; that of --node; or a saved dump (--file). Without any of
them, any one for what is the same in all, and every one for certificates, connections and log levels.`,
		Args: command.Commands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(workloadCommand(env), serviceCommand(env), policyCommand(env), certificateCommand(env),
		connectionCommand(env), allCommand(env), logCommand(env))
	return cmd
}

// options are the flags that all commands have.
type options struct {
	env       *command.Env
	format    string
	node      string
	file      string
	namespace string
	port      int
}

// view is one of the commands that show a dump.
type view struct {
	use     string // the noun, if noun is empty
	noun    string
	aliases []string
	short   string
	// everywhere: without a choice all proxies are asked, since each knows something else.
	everywhere bool
	// table writes the text and returns how many rows it has; objects returns what -o shows.
	table   func(out io.Writer, d *dump, f filter) (int, error)
	objects func(d *dump, f filter) (any, error)
}

// command makes the command of a view; flags that fill the filter are the caller's to add.
func (v view) command(env *command.Env, f *filter) *cobra.Command {
	o := &options{env: env}
	cmd := &cobra.Command{
		Use: v.use + " [POD]", Aliases: v.aliases, Short: v.short,
		Args: o.checkArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.direction != "" && f.direction != "inbound" && f.direction != "outbound" {
				return console.Usagef("--direction %s: use inbound or outbound", f.direction)
			}
			return o.show(cmd.Context(), v, f, args)
		},
	}
	o.register(cmd)
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "table (default), json or yaml")
	cmd.Flags().StringVarP(&o.file, "file", "f", "", "a saved config_dump instead of a cluster; - for standard input")
	return cmd
}

func (o *options) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.node, "node", "", "the proxy of this node")
	flags.StringVarP(&o.namespace, "namespace", "n", "", "namespace of POD (default the mesh's for a ztunnel pod, else default)")
	flags.IntVar(&o.port, "proxy-admin-port", api.PortAdmin, "port of the proxy's admin endpoint")
}

// checkArgs lets one choice of a proxy through.
func (o *options) checkArgs(cmd *cobra.Command, args []string) error {
	choices := len(args)
	for _, flag := range []string{o.node, o.file} {
		if flag != "" {
			choices++
		}
	}
	switch {
	case len(args) > 1:
		return console.Usagef("%s takes one pod, got %q", cmd.CommandPath(), args)
	case choices > 1:
		return console.Usagef("give one of POD, --node and --file")
	}
	if o.format == "table" || o.format == "short" {
		o.format = ""
	}
	return console.CheckFormat(o.format)
}

// show fetches and prints.
func (o *options) show(ctx context.Context, v view, f *filter, args []string) error {
	d, failed, err := o.fetch(ctx, v.everywhere, f, args)
	if err != nil {
		return err
	}
	if o.format == "" {
		var rows int
		if rows, err = v.table(o.env.Out, d, *f); err == nil && rows == 0 {
			o.env.Notef("There is no %s to show.", cmp.Or(v.noun, v.use))
		}
	} else {
		var objects any
		if objects, err = v.objects(d, *f); err == nil {
			err = o.env.Object(o.format, objects)
		}
	}
	if err == nil && failed {
		return console.ErrTold
	}
	return err
}

// fetch returns the dump that is asked for; of several proxies, one with what each of them has. failed says that some,
// which the console was told of, did not answer.
func (o *options) fetch(ctx context.Context, everywhere bool, f *filter, args []string) (d *dump, failed bool, err error) {
	if o.file != "" {
		d, err = o.read()
		return d, false, err
	}
	cluster, targets, err := o.find(ctx, everywhere, args)
	if err != nil {
		return nil, false, err
	}
	dumps, errs := each(targets, func(t *target) (*dump, error) { return o.ask(ctx, cluster, t) })
	for i, t := range targets {
		one, err := dumps[i], errs[i]
		switch {
		case err != nil && len(targets) == 1:
			return nil, false, err
		case err != nil:
			failed = o.told(t, err) || failed
		case d == nil:
			d = one
		default:
			d.add(one)
		}
		if t.beside && err == nil {
			o.env.Notef("Note: ztunnel %s runs beside the one that serves the node; what it has is among this.", &t)
		}
	}
	if d == nil {
		return nil, false, errors.New("no ztunnel answered")
	}
	if pod := targets[0].pod; pod != nil {
		f.pod = pod.Namespace + "/" + pod.Name
		if reason := notCaptured(pod); reason != nil {
			if everywhere && !isPending(pod) && len(d.podConnections(*f)) == 0 {
				return nil, false, reason
			}
			o.env.Notef("Note: %v.", reason)
		}
	}
	return d, failed, nil
}

// told notes that a proxy of several did not answer, and says whether that is a failure: one beside another may just have
// ended.
func (o *options) told(t target, err error) bool {
	if t.beside {
		o.env.Notef("Note: %v.", err)
		return false
	}
	o.env.Notef("ambit: %v", err)
	return true
}

// add takes what another proxy alone knows.
func (d *dump) add(other *dump) {
	d.Certificates = append(d.Certificates, other.Certificates...)
	d.others = append(d.others, slices.Collect(maps.Values(other.Pods))...)
}

// read reads the saved dump.
func (o *options) read() (*dump, error) {
	var text []byte
	var err error
	if o.file == "-" {
		text, err = io.ReadAll(o.env.In)
	} else {
		text, err = os.ReadFile(o.file)
	}
	if err != nil {
		return nil, fmt.Errorf("read the dump: %w", err)
	}
	d, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o.file, err)
	}
	return d, nil
}

// find says which proxies are meant.
func (o *options) find(ctx context.Context, everywhere bool, args []string) (*kube.Cluster, []target, error) {
	cluster, _, err := o.env.Connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	namespace, _, err := o.env.FindMesh(ctx, cluster)
	if err != nil {
		return nil, nil, err
	}
	all, err := proxies(ctx, cluster.Kubernetes, namespace)
	if err != nil {
		return nil, nil, err
	}
	var t target
	switch {
	case len(args) > 0:
		ns, name, err := splitPod(args[0], o.namespace)
		if err != nil {
			return nil, nil, err
		}
		t, err = byPod(ctx, cluster.Kubernetes, all, ns, name)
		if err != nil || t.pod == nil || !everywhere {
			return cluster, []target{t}, err
		}
		return cluster, withBeside([]target{t}, all), nil
	case o.node != "":
		t, err = byNode(ctx, cluster.Kubernetes, all, o.node)
		if err != nil || !everywhere {
			return cluster, []target{t}, err
		}
		return cluster, withBeside([]target{t}, all), nil
	}
	targets := perNode(all)
	if everywhere {
		return cluster, withBeside(targets, all), nil
	}
	i := max(0, slices.IndexFunc(targets, func(t target) bool { return ready(&t.proxy) }))
	return cluster, targets[i : i+1], nil
}

// Limits of what proxies are asked.
const (
	// askAtOnce is how many proxies are asked at the same time: with a large mesh each answer is some tens of MB.
	askAtOnce = 4
	// askTimeout bounds one answer.
	askTimeout = time.Minute
)

// each asks proxies, some at a time, and returns their answers in order.
func each[T any](targets []target, ask func(*target) (T, error)) ([]T, []error) {
	answers, errs := make([]T, len(targets)), make([]error, len(targets))
	var asking errgroup.Group
	asking.SetLimit(askAtOnce)
	for i := range targets {
		asking.Go(func() error {
			answers[i], errs[i] = ask(&targets[i])
			return nil
		})
	}
	_ = asking.Wait() // errors are in errs
	return answers, errs
}

// request asks a proxy's admin endpoint.
func (o *options) request(ctx context.Context, cluster *kube.Cluster, t *target, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("no answer in %v", askTimeout))
	defer cancel()
	return cluster.Do(ctx, method, t.proxy.Namespace, t.proxy.Name, o.port, path)
}

// ask gets a proxy's dump.
func (o *options) ask(ctx context.Context, cluster *kube.Cluster, t *target) (*dump, error) {
	text, err := o.request(ctx, cluster, t, http.MethodGet, "/config_dump")
	if err != nil {
		return nil, fmt.Errorf("ztunnel %s gave no dump: %w", t, err)
	}
	d, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("dump of ztunnel %s: %w", t, err)
	}
	return d, nil
}

func workloadCommand(env *command.Env) *cobra.Command {
	f := &filter{}
	cmd := view{
		use: "workload", aliases: []string{"workloads", "w"}, short: "Show the workloads that a node proxy knows",
		table:   func(out io.Writer, d *dump, f filter) (int, error) { return d.workloadTable(out, f) },
		objects: func(d *dump, f filter) (any, error) { return d.workloads(f), nil },
	}.command(env, f)
	cmd.Flags().StringVar(&f.namespace, "workload-namespace", "", "only workloads of this namespace")
	cmd.Flags().StringVar(&f.node, "workload-node", "", "only workloads on this node")
	cmd.Flags().StringVar(&f.address, "address", "", "only workloads with this address")
	return cmd
}

func serviceCommand(env *command.Env) *cobra.Command {
	f := &filter{}
	cmd := view{
		use: "service", aliases: []string{"services", "svc", "s"}, short: "Show the services that a node proxy knows",
		table:   func(out io.Writer, d *dump, f filter) (int, error) { return d.serviceTable(out, f) },
		objects: func(d *dump, f filter) (any, error) { return d.services(f), nil },
	}.command(env, f)
	cmd.Flags().StringVar(&f.namespace, "service-namespace", "", "only services of this namespace")
	return cmd
}

func policyCommand(env *command.Env) *cobra.Command {
	f := &filter{}
	cmd := view{
		use: "policy", aliases: []string{"policies", "pol", "p"}, short: "Show the policies that a node proxy enforces",
		table: func(out io.Writer, d *dump, f filter) (int, error) {
			for _, r := range d.policies(f) {
				if r.Value.Invalid != "" {
					env.Notef("Policy %s/%s is invalid and fails closed: %s", r.Value.Namespace, r.Value.Name, r.Value.Invalid)
				}
			}
			return d.policyTable(out, f)
		},
		objects: func(d *dump, f filter) (any, error) { return d.policies(f), nil },
	}.command(env, f)
	cmd.Flags().StringVar(&f.namespace, "policy-namespace", "", "only policies of this namespace")
	return cmd
}

func certificateCommand(env *command.Env) *cobra.Command {
	return view{
		use: "certificate", aliases: []string{"certificates", "certs", "cert"}, short: "Show the certificates that node proxies hold",
		everywhere: true,
		table: func(out io.Writer, d *dump, _ filter) (int, error) {
			for _, r := range d.certificates() {
				if _, cause, failed := strings.Cut(r.Value.State, ": "); failed {
					env.Notef("The last request for the certificate of %s failed: %s", r.Value.Identity, cause)
				}
			}
			return d.certificateTable(out, time.Now())
		},
		objects: func(d *dump, _ filter) (any, error) { return d.certificates(), nil },
	}.command(env, &filter{})
}

func connectionCommand(env *command.Env) *cobra.Command {
	f := &filter{}
	cmd := view{
		use: "connection", aliases: []string{"connections", "cons"}, short: "Show the connections that node proxies carry",
		everywhere: true,
		table: func(out io.Writer, d *dump, f filter) (int, error) {
			for _, r := range d.podConnections(f) {
				if p := r.Value; p.State == "Pending" {
					env.Notef("Pod %s/%s is not served: %s", p.Info.Namespace, p.Info.Name, p.Error)
				}
			}
			return d.connectionTable(out, f)
		},
		objects: func(d *dump, f filter) (any, error) { return d.connectionObjects(f) },
	}.command(env, f)
	cmd.Flags().StringVar(&f.namespace, "workload-namespace", "", "only connections of pods of this namespace")
	cmd.Flags().StringVar(&f.direction, "direction", "", "only inbound or outbound connections")
	cmd.Flags().BoolVar(&f.raw, "raw", false, "show addresses instead of names")
	return cmd
}

func allCommand(env *command.Env) *cobra.Command {
	return view{
		use: "all", noun: "object", short: "Show all that a node proxy knows",
		table: func(out io.Writer, d *dump, f filter) (int, error) {
			all := 0
			for i, section := range []func() (int, error){
				func() (int, error) { return d.workloadTable(out, f) },
				func() (int, error) { return d.serviceTable(out, f) },
				func() (int, error) { return d.policyTable(out, f) },
				func() (int, error) { return d.certificateTable(out, time.Now()) },
				func() (int, error) { return d.connectionTable(out, f) },
			} {
				if i > 0 {
					fmt.Fprintln(out)
				}
				rows, err := section()
				if err != nil {
					return all, err
				}
				all += rows
			}
			return all, nil
		},
		objects: func(d *dump, _ filter) (any, error) { return d.whole, nil },
	}.command(env, &filter{})
}

// levels is what `log` says of one proxy.
type levels struct {
	Pod   string `json:"pod"`
	Node  string `json:"node"`
	Level string `json:"level"`
}

func logCommand(env *command.Env) *cobra.Command {
	o := &options{env: env}
	var level string
	var reset bool
	cmd := &cobra.Command{
		Use: "log [POD]", Aliases: []string{"logs", "o"}, Short: "Show the log levels of node proxies, or change them",
		Example: `  ambit ztunnel log --level debug
  ambit ztunnel log --level access=warn,proxy=debug --node node1
  ambit ztunnel log --reset`,
		Args: o.checkArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if reset && level != "" {
				return console.Usagef("give one of --level and --reset")
			}
			if _, err := telemetry.ParseFilter(level); err != nil {
				return console.Usagef("--level %s: %w", level, err)
			}
			query := ""
			switch {
			case reset:
				query = "?reset=true"
			case level != "":
				query = "?level=" + escapeLevel(level)
			}
			return o.log(cmd.Context(), query, args)
		},
	}
	o.register(cmd)
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "table (default), json or yaml")
	cmd.Flags().StringVar(&level, "level", "", "off, error, warn, info, debug or trace; or target=level, separated by commas")
	cmd.Flags().BoolVarP(&reset, "reset", "r", false, "go back to the levels of the start")
	return cmd
}

// escapeLevel is a filter as a query. Istio's proxy wants an equals sign between target and level.
func escapeLevel(level string) string {
	parts := strings.Split(level, ",")
	for i, p := range parts {
		if at := strings.LastIndexByte(p, ':'); at > 0 && !strings.Contains(p, "=") {
			parts[i] = p[:at] + "=" + p[at+1:]
		}
	}
	return strings.NewReplacer("%", "%25", "&", "%26", "#", "%23", " ", "%20", "+", "%2B").Replace(strings.Join(parts, ","))
}

// log asks proxies for their levels, and changes them if the query says so.
func (o *options) log(ctx context.Context, query string, args []string) error {
	cluster, targets, err := o.find(ctx, true, args)
	if err != nil {
		return err
	}
	answers := []levels{}
	failed := false
	texts, errs := each(targets, func(t *target) ([]byte, error) {
		return o.request(ctx, cluster, t, http.MethodPost, "/logging"+query)
	})
	for i, t := range targets {
		if err := errs[i]; err != nil {
			err = fmt.Errorf("ztunnel %s: %w", &t, err)
			if len(targets) == 1 {
				return err
			}
			failed = o.told(t, err) || failed
			continue
		}
		level := strings.TrimPrefix(strings.TrimSpace(string(texts[i])), "current log level is ")
		answers = append(answers, levels{t.proxy.Namespace + "/" + t.proxy.Name, t.proxy.Spec.NodeName, level})
	}
	if o.format != "" {
		err = o.env.Object(o.format, answers)
	} else {
		t := newTable(o.env.Out, "POD", "NODE", "LEVEL")
		for _, a := range answers {
			t.row(a.Pod, a.Node, a.Level)
		}
		_, err = t.end()
	}
	if err == nil && failed {
		return console.ErrTold
	}
	return err
}
