// Package settings is what the commands share of flags and environment.
package settings

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// Etcd are the flags by which a command reaches etcd.
type Etcd struct {
	opts         etcd.Options
	passwordFile string
}

// Register adds the flags.
func (e *Etcd) Register(flags *pflag.FlagSet) {
	flags.StringSliceVar(&e.opts.Endpoints, "etcd-endpoints", []string{"http://127.0.0.1:2379"}, "etcd's client `URLs`, separated by commas")
	flags.StringVar(&e.opts.Prefix, "etcd-prefix", etcd.DefaultPrefix, "`key` under which config and leases lie in etcd")
	flags.StringVar(&e.opts.CAFile, "etcd-cafile", "", "`file` with the certificates by which etcd's own is verified (the system's if empty)")
	flags.StringVar(&e.opts.CertFile, "etcd-certfile", "", "`file` with the client certificate to show to etcd")
	flags.StringVar(&e.opts.KeyFile, "etcd-keyfile", "", "`file` with the client certificate's key")
	flags.StringVar(&e.opts.Username, "etcd-username", "", "`user` to log in to etcd as")
	flags.StringVar(&e.opts.Password, "etcd-password", "", "`password` of that user; it shows in ps, so better use the file or the environment")
	flags.StringVar(&e.passwordFile, "etcd-password-file", "", "`file` that holds the password")
}

// Arguments are the flags that are not as they are by default, as other commands take
// them. A password is not among them, for commands are shown.
func (e *Etcd) Arguments() (out []string) {
	var standard Etcd
	standard.Register(pflag.NewFlagSet("", pflag.ContinueOnError))
	for _, f := range []struct{ name, value, standard string }{
		{"etcd-endpoints", strings.Join(e.opts.Endpoints, ","), strings.Join(standard.opts.Endpoints, ",")},
		{"etcd-prefix", e.opts.Prefix, standard.opts.Prefix},
		{"etcd-cafile", e.opts.CAFile, ""},
		{"etcd-certfile", e.opts.CertFile, ""},
		{"etcd-keyfile", e.opts.KeyFile, ""},
		{"etcd-username", e.opts.Username, ""},
		{"etcd-password-file", e.passwordFile, ""},
	} {
		if f.value != f.standard {
			out = append(out, "--"+f.name+"="+f.value)
		}
	}
	return out
}

// Elsewhere tells whether the endpoints are others than the default.
func (e *Etcd) Elsewhere() bool {
	return slices.ContainsFunc(e.Arguments(), func(f string) bool { return strings.HasPrefix(f, "--etcd-endpoints=") })
}

// Options returns what the flags say. The password's file is read here.
func (e *Etcd) Options() (etcd.Options, error) {
	o := e.opts
	o.LeaseTTL = subnet.DefaultLeaseTTL
	if !strings.HasPrefix(o.Prefix, "/") || strings.HasSuffix(o.Prefix, "/") {
		return o, fmt.Errorf("--etcd-prefix: %q must begin with a slash and not end with one", o.Prefix)
	}
	if e.passwordFile != "" {
		if o.Password != "" {
			return o, errors.New("--etcd-password and --etcd-password-file: give one of them")
		}
		text, err := os.ReadFile(e.passwordFile)
		if err != nil {
			return o, fmt.Errorf("--etcd-password-file: %w", err)
		}
		o.Password = strings.TrimRight(string(text), "\r\n")
	}
	if (o.Username == "") != (o.Password == "") {
		return o, errors.New("--etcd-username needs a password (--etcd-password-file), and a password needs --etcd-username")
	}
	return o, o.Check()
}

// FromEnvironment sets every flag that the command line left alone from the
// environment: --etcd-cafile from PREFIX_ETCD_CAFILE.
func FromEnvironment(flags *pflag.FlagSet, prefix string) error {
	return fill(flags, prefix, "environment", os.LookupEnv)
}

// Unknown are the variables of the environment that begin as those of flags do and are
// none's: a name that is misspelt sets nothing. What Kubernetes puts into a pod for a
// Service whose name begins so is not among them
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
func Unknown(flags *pflag.FlagSet, prefix string) (out []string) {
	known := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) { known[EnvironmentName(prefix, f.Name)] = true })
	for _, variable := range os.Environ() {
		name, value, _ := strings.Cut(variable, "=")
		rest, ours := strings.CutPrefix(name, prefix)
		if ours && strings.HasPrefix(rest, "_") && !known[name] && !ofService(rest, value) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

var serviceVariable = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

func ofService(name, value string) bool {
	return serviceVariable.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

func fill(flags *pflag.FlagSet, prefix, source string, lookup func(string) (string, bool)) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		name := EnvironmentName(prefix, f.Name)
		value, ok := lookup(name)
		if !ok || f.Changed || f.Name == "help" || f.Name == "version" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			if strings.Contains(f.Name, "password") {
				err = errors.New("cannot be used") // The value stays out of sight.
			}
			errs = append(errs, fmt.Errorf("%s variable %s: %w", source, name, err))
		}
	})
	return errors.Join(errs...)
}

// FromFile sets every flag that was left alone from a file of variables as systemd
// reads it (EnvironmentFile=): --etcd-cafile from PREFIX_ETCD_CAFILE. What else is in
// the file is passed over, and so is a file that is not there.
func FromFile(flags *pflag.FlagSet, prefix, path string) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";") {
			values[strings.TrimSpace(key)] = unquote(strings.TrimSpace(value))
		}
	}
	return fill(flags, prefix, path, func(name string) (string, bool) {
		value, ok := values[name]
		return value, ok
	})
}

func unquote(text string) string {
	if n := len(text); n >= 2 && (text[0] == '"' || text[0] == '\'') && text[n-1] == text[0] {
		return text[1 : n-1]
	}
	return text
}

// EnvironmentName is the variable that sets a flag.
func EnvironmentName(prefix, flag string) string {
	return prefix + "_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Columns is how wide the terminal is that standard output goes to, 0 where it is none.
func Columns() int {
	width, _, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// ParseLevel reads a log level.
func ParseLevel(level string) (zapcore.Level, error) {
	l, err := zapcore.ParseLevel(level)
	if err != nil || l > zapcore.ErrorLevel {
		return l, fmt.Errorf("--log-level: %q is none of debug, info, warn, error", level)
	}
	return l, nil
}

// Logger returns a logger to standard error, lines for people on a terminal and
// JSON otherwise, and its level, which can be changed.
func Logger(level string, terminal bool) (*zap.Logger, zap.AtomicLevel, error) {
	l, err := ParseLevel(level)
	if err != nil {
		return nil, zap.AtomicLevel{}, err
	}
	cfg := zap.NewProductionConfig()
	cfg.Level = zap.NewAtomicLevelAt(l)
	cfg.Sampling = nil // A repeated failure is said once and then counted, where it comes up.
	cfg.DisableCaller, cfg.DisableStacktrace = true, true
	cfg.EncoderConfig.TimeKey = "time"
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.EncoderConfig.EncodeDuration = zapcore.StringDurationEncoder
	if terminal {
		cfg.Encoding = "console"
		cfg.EncoderConfig.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		cfg.EncoderConfig.EncodeLevel = zapcore.CapitalLevelEncoder
	}
	log, err := cfg.Build()
	return log, cfg.Level, err
}
